"""The DAQ wire over real sockets: our two ends against each other, and against what else may sit at the other end."""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq

from ministream.errors import ConfigError, PeerLostError
from ministream.model import Frame, FrameKind, Scan
from ministream.transport.timage import DaqReceiver, DaqSender
from ministream.wire import timage
from ministream.wire.daq_order import dataset_order
from ministream.wire.session import Arrived, Ended, Lost, Refused
from tests.recordings import timage_messages

ANY = "tcp://127.0.0.1:0"
SCAN = Scan(scan_id="scan", rows=3, cols=4, projections=20, flats=2, darks=2, dtype="<u2", axis_col=1.25)


def frames(shape=(3, 4)):
    kinds = [FrameKind.DARK] * 2 + [FrameKind.FLAT] * 2 + [FrameKind.PROJECTION] * 20
    counts = dict.fromkeys(FrameKind, 0)
    for kind in kinds:
        index = counts[kind]
        counts[kind] += 1
        angle_rad = index / 10 if kind is FrameKind.PROJECTION else 0.0
        pixels = np.full(shape, 100 * kind + index, np.uint16)
        yield Frame(kind=kind, index=index, angle_rad=angle_rad, pixels=pixels, acquired_s=0.0)


def sender(**changes) -> DaqSender:
    options = {
        "sync_listen": None,
        "subscribers": 1,
        "queue": 4,
        "pixel_dtype": None,
        "angle_unit": "degrees",
        "peer_timeout_s": 5.0,
        "stall_timeout_s": 5.0,
    }
    return DaqSender(changes.pop("listen", ANY), changes.pop("scan", SCAN), **options | changes)


def receiver(url: str, **changes) -> DaqReceiver:
    options = {
        "sync_url": None,
        "pixel_dtype": "uint16",
        "angle_unit": "degrees",
        "hold_bytes": 2**20,
        "needs_flats": False,
        "connect_timeout_s": 5.0,
        "stall_timeout_s": 5.0,
    }
    return DaqReceiver(url, **options | changes)


def everything(daq: DaqReceiver, pause_s: float = 0.0) -> list:
    """All events up to the last."""
    events = []
    while not events or not isinstance(events[-1], Ended | Lost):
        event = daq.next(10)
        assert event is not None
        events.append(event)
        time.sleep(pause_s)
    return events


def in_thread(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def send_all(daq: DaqSender, items) -> None:
    for frame in items:
        daq.send(frame)
    daq.finish()


class Publisher:
    """A bare PUB socket that sends given messages once somebody has said that he is ready."""

    def __init__(self, messages) -> None:
        self._messages = list(messages)
        self._context = zmq.Context()
        self._pub, self._rep = self._context.socket(zmq.PUB), self._context.socket(zmq.REP)
        self._pub.set(zmq.SNDHWM, 0)
        for socket in (self._pub, self._rep):
            socket.bind(ANY)
        self.address, self.sync_address = (s.get_string(zmq.LAST_ENDPOINT) for s in (self._pub, self._rep))

    def __enter__(self):
        self._thread = in_thread(self._run)
        return self

    def __exit__(self, *_) -> None:
        self._thread.join()
        for socket in (self._pub, self._rep):
            socket.close(linger=2000)
        self._context.term()

    def _run(self) -> None:
        if self._rep.poll(10_000):
            self._rep.recv()
            self._rep.send(b"")
            for message in self._messages:
                self._pub.send(message)


@pytest.mark.parametrize("sync", [None, ANY])
@pytest.mark.parametrize("unit", ["degrees", "radians"])
def test_a_scan_crosses_whole(sync, unit) -> None:
    with sender(sync_listen=sync, angle_unit=unit) as source:
        thread = in_thread(send_all, source, frames())
        with receiver(source.address, sync_url=source.sync_address, angle_unit=unit) as daq:
            scan = daq.scan()
            events = everything(daq)
        thread.join()
    assert (scan.rows, scan.cols, scan.dtype, scan.axis_col) == (3, 4, "<u2", 1.25)
    assert [event.seq for event in events[:-1]] == list(range(24))
    for event, sent in zip(events[:-1], frames(), strict=True):
        assert (event.frame.kind, event.frame.index) == (sent.kind, sent.index)
        assert event.frame.angle_rad == pytest.approx(sent.angle_rad, abs=1e-6)
        np.testing.assert_array_equal(event.frame.pixels, sent.pixels)
    assert events[-1].totals.projections == 20
    assert (events[-1].totals.darks, events[-1].totals.flats) == (2, 2)


def test_one_subscriber_may_stand_for_many() -> None:
    """The original distributor says ready once for each of its workers, but subscribes once."""
    with sender(sync_listen=ANY, subscribers=3) as source:
        thread = in_thread(send_all, source, frames())
        with receiver(source.address, sync_url=source.sync_address, ready=3) as daq:
            daq.scan()
            assert len(everything(daq)) == 25
        thread.join()


def test_whoever_says_ready_late_is_answered() -> None:
    with sender(sync_listen=ANY) as source:
        thread = in_thread(send_all, source, frames())
        with receiver(source.address, sync_url=source.sync_address, ready=3) as daq:
            daq.scan()
            assert len(everything(daq)) == 25
        thread.join()


def test_a_publisher_that_begins_answers_no_more(shared: Path) -> None:
    messages = timage_messages(shared)
    with (
        Publisher(messages) as source,
        receiver(source.address, sync_url=source.sync_address, pixel_dtype="float32", ready=3) as daq,
    ):
        daq.scan()
        assert len(everything(daq)) == len(messages)


def test_two_subscribers_get_everything_and_a_slow_one_loses_nothing() -> None:
    shape = (256, 1024)
    scan = Scan(scan_id="s", rows=256, cols=1024, projections=20, flats=2, darks=2, dtype="<u2")
    with ExitStack() as stack:
        source = stack.enter_context(sender(scan=scan, subscribers=2, queue=1, sync_listen=ANY))
        thread = in_thread(send_all, source, frames(shape))
        counts: dict[float, int] = {}

        def read(pause_s: float) -> None:
            with receiver(source.address, sync_url=source.sync_address) as daq:
                daq.scan()
                counts[pause_s] = len(everything(daq, pause_s))

        readers = [in_thread(read, pause_s) for pause_s in (0.0, 0.03)]
        for one in (*readers, thread):
            one.join()
    assert counts == {0.0: 25, 0.03: 25}


def test_the_recorded_stream_arrives_in_order(shared: Path) -> None:
    with (
        Publisher(timage_messages(shared)) as source,
        receiver(source.address, sync_url=source.sync_address, pixel_dtype="float32") as daq,
    ):
        scan = daq.scan()
        events = everything(daq)
    assert (scan.rows, scan.cols, scan.axis_col) == (2, 640, 319.5)
    kinds = [event.frame.kind for event in events[:-1]]
    assert kinds == [FrameKind.DARK] * 10 + [FrameKind.FLAT] * 10 + [FrameKind.PROJECTION] * 181
    assert events[-1].totals.projections == 181


def test_bad_and_missing_images_are_counted(shared: Path) -> None:
    messages = timage_messages(shared)
    messages[40:40] = [b"garbage", messages[3][:-1]]
    del messages[100]
    with (
        Publisher(messages) as source,
        receiver(source.address, sync_url=source.sync_address, pixel_dtype="float32") as daq,
    ):
        daq.scan()
        events = everything(daq)
    refused = [event for event in events if isinstance(event, Refused)]
    arrived = [event for event in events if isinstance(event, Arrived) and event.frame.kind is FrameKind.PROJECTION]
    assert len(refused) == 2
    assert all(source.address in event.text for event in refused)
    assert len(arrived) == 180
    assert events[-1].totals.projections == 183


def test_a_wrong_dtype_ends_the_job_with_the_remedy(shared: Path) -> None:
    with (
        Publisher(timage_messages(shared)) as source,
        receiver(source.address, sync_url=source.sync_address) as daq,
        pytest.raises(ConfigError, match="--pixel-dtype float32 would fit"),
    ):
        daq.scan()


def test_a_publisher_that_falls_silent_is_lost(shared: Path) -> None:
    with (
        Publisher(timage_messages(shared)[:-1]) as source,
        receiver(source.address, sync_url=source.sync_address, pixel_dtype="float32", stall_timeout_s=0.3) as daq,
    ):
        daq.scan()
        events = everything(daq)
    assert len(events) == 202
    assert isinstance(events[-1], Lost)
    assert "no message for" in events[-1].text
    assert "--stall-timeout SECONDS" in events[-1].text


@pytest.mark.parametrize("what", ["publisher", "sync", "images"])
def test_whoever_stays_away_is_named_in_time(what) -> None:
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        pub, rep = (stack.enter_context(context.socket(kind)) for kind in (zmq.PUB, zmq.REP))
        addresses = []
        for socket in (pub, rep):
            socket.bind(ANY)
            addresses.append(socket.get_string(zmq.LAST_ENDPOINT))
        if what == "publisher":
            pub.unbind(addresses[0])
        sync = addresses[1] if what == "sync" else None
        daq = stack.enter_context(receiver(addresses[0], sync_url=sync, connect_timeout_s=0.3))
        started = time.monotonic()
        with pytest.raises(PeerLostError, match=sync or addresses[0]):
            daq.scan()
        assert time.monotonic() - started < 3


def test_a_scan_without_images_is_named() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as pub:
        pub.bind(ANY)
        with receiver(pub.get_string(zmq.LAST_ENDPOINT)) as daq:
            thread = threading.Thread(target=lambda: (pub.recv(), pub.send(timage.END_OF_DATA)))
            thread.start()
            with pytest.raises(PeerLostError, match=r"ended the scan before its first image\. Start it again"):
                daq.scan()
            thread.join()


@pytest.mark.parametrize("sync", [None, ANY])
def test_a_sender_without_subscribers_gives_up(sync) -> None:
    with (
        sender(sync_listen=sync, peer_timeout_s=0.2) as source,
        pytest.raises(PeerLostError, match="0 of 1 subscribers"),
    ):
        source.send(next(frames()))


def test_a_subscriber_that_reads_nothing_does_not_stall_the_others(caplog) -> None:
    scan = Scan(scan_id="s", rows=1024, cols=1024, projections=20, flats=2, darks=2, dtype="<u2")
    with sender(scan=scan, queue=1, subscribers=2, stall_timeout_s=0.5) as source, zmq.Context() as context:
        stranger = context.socket(zmq.SUB)
        stranger.set(zmq.RCVHWM, 1)
        stranger.subscribe(b"")
        stranger.connect(source.address)
        arrived: list[object] = []

        def receive() -> None:
            with receiver(source.address) as daq:
                daq.scan()
                while (event := daq.next(5)) is not None and not isinstance(event, Ended):
                    arrived.append(event)

        thread = in_thread(receive)
        for frame in [*frames((1024, 1024))] * 4:
            source.send(frame)
            time.sleep(0.01)  # a detector's pace, which the reader keeps
        source.finish()
        stranger.close(0)
        thread.join(20)
        assert not thread.is_alive()
        assert arrived
    assert "one of 2 subscribers read nothing" in caplog.text


def test_a_sender_whose_subscriber_leaves_or_hangs_says_so() -> None:
    scan = Scan(scan_id="s", rows=1024, cols=1024, projections=20, flats=2, darks=2, dtype="<u2")
    with sender(scan=scan, queue=1, stall_timeout_s=0.5) as source:
        errors: list[Exception] = []

        def send() -> None:
            try:
                for frame in [*frames((1024, 1024))] * 10:
                    source.send(frame)
            except PeerLostError as error:
                errors.append(error)

        thread = in_thread(send)
        with receiver(source.address) as daq:
            daq.scan()
            thread.join()  # this receiver reads no more
        assert "read nothing" in str(errors[0])
        deadline = time.monotonic() + 5
        with pytest.raises(PeerLostError, match="the last subscriber disconnected"):
            while time.monotonic() < deadline:
                source.send(next(frames()))


def test_a_sender_before_a_tunnel_waits_until_everything_has_been_read() -> None:
    with sender(drain_s=5.0, queue=100) as source:
        thread = in_thread(send_all, source, frames())
        with receiver(source.address) as daq:
            daq.scan()
            thread.join(0.3)
            assert thread.is_alive()
            assert len(everything(daq)) == 25
            thread.join(2)
            assert not thread.is_alive()


def test_a_subscriber_that_stays_after_the_end_is_not_waited_for_forever() -> None:
    context = zmq.Context()
    with sender(drain_s=0.2) as source, context.socket(zmq.SUB) as viewer:
        viewer.subscribe(b"")
        viewer.connect(source.address)
        started = time.monotonic()
        send_all(source, frames())
        assert 0.2 < time.monotonic() - started < 3
    context.term()


def test_an_address_in_use_or_malformed_is_a_configuration_error() -> None:
    with sender() as first, pytest.raises(ConfigError, match=first.address):
        sender(listen=first.address)
    with receiver("not an address") as daq, pytest.raises(ConfigError, match="not an address"):
        daq.scan()


def test_pixels_are_sent_as_the_user_asks() -> None:
    with sender(pixel_dtype="float32") as source:
        thread = in_thread(send_all, source, frames())
        with receiver(source.address, pixel_dtype="float32") as daq:
            assert daq.scan().dtype == "<f4"
            events = everything(daq)
        thread.join()
    assert events[4].frame.pixels[0, 0] == 100 * FrameKind.PROJECTION


def test_what_is_sent_reads_like_the_original(shared: Path) -> None:
    context = zmq.Context()
    with sender(sync_listen=ANY) as source, context.socket(zmq.SUB) as sub, context.socket(zmq.REQ) as req:
        sub.connect(source.address)
        sub.subscribe(b"")
        req.connect(str(source.sync_address))
        thread = in_thread(send_all, source, dataset_order(frames()))
        req.send(b"")
        assert req.recv() == b""
        messages = [sub.recv()]
        while messages[-1] != b"end_data":
            messages.append(sub.recv())
        thread.join()
    context.term()
    images = [timage.decode(message) for message in messages[:-1]]
    assert [image.seq for image in images] == [image.unique_id for image in images] == list(range(24))
    assert "".join(str(int(image.image_type)) for image in images) == "4253" + "1" * 20
    assert images[5].rotation == pytest.approx(math.degrees(0.1))
    assert {image.center for image in images} == {1.75}
