"""The native stream over real sockets: complete and identical, or a clear event or error in bounded time."""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import xxhash
import zmq

from ministream.errors import ConfigError, FrameError, InputError, PeerError, PeerLostError, ProtocolError
from ministream.model import FrameKind, Scan
from ministream.transport import Arrived, Ended, Event, Lost, Omitted, Refused, SenderReport
from ministream.transport._native.driver import Driver
from ministream.transport.native import FrameReceiver, FrameSender
from ministream.wire import native
from tests.cable import Cable
from tests.native_stream import make_frame, make_frames, make_scan, same
from tests.sending import Sending, events_of
from tests.waiting import eventually

MIB = 2**20
LOOPBACK = "tcp://127.0.0.1:0"
SMALL = make_scan()
# 1 MiB per frame
LARGE = make_scan(rows=512, cols=1024, projections=25)
# Impatient, so that what takes seconds in life takes tenths here.
HASTY = {"silent_timeout_s": 0.5, "heartbeat_s": 0.1}


def transfer(scan: Scan, listen: str, cut_after: int | None = None) -> tuple[list[Event], SenderReport, FrameReceiver]:
    """Send a scan from `listen`, through a cable if it is to be cut; what came, and what both ends counted."""
    with ExitStack() as stack:
        sender = stack.enter_context(FrameSender(listen, scan))
        address = sender.address
        if cut_after is not None:
            address = stack.enter_context(Cable(address, cut_after=cut_after)).address
        sending = Sending(sender, list(make_frames(scan)))
        with FrameReceiver(address, credit_bytes=8 * MIB) as receiver:
            events = list(events_of(receiver))
        sending.join(20)
        assert sending.report is not None, sending.error
        return events, sending.report, receiver


@pytest.mark.parametrize("listen", [LOOPBACK, "ipc://{folder}/data", "inproc://data"])
@pytest.mark.parametrize("scan", [SMALL, LARGE, replace(SMALL, dtype="|u1"), replace(LARGE, dtype=">f4")], ids=str)
def test_a_scan_arrives_whole(scan: Scan, listen: str, tmp_path: Path) -> None:
    events, report, receiver = transfer(scan, listen.format(folder=tmp_path))
    *arrived, ended = events
    assert [event.seq for event in arrived if isinstance(event, Arrived)] == list(range(len(arrived)))
    sent = list(make_frames(scan))
    assert all(isinstance(e, Arrived) and same(e.frame, frame) for e, frame in zip(arrived, sent, strict=True))
    assert isinstance(ended, Ended)
    assert (ended.totals.darks, ended.totals.flats, ended.totals.projections) == (2, 3, scan.projections)
    assert report.projections == scan.projections
    assert report.acked == len(sent)
    assert report.bytes == receiver.report.bytes == len(sent) * scan.frame_bytes
    assert receiver.report.received == len(sent)
    assert receiver.report.dialled == 1
    assert receiver.next(0) is None


def test_large_frames_are_handed_out_without_a_copy_and_read_only() -> None:
    events, _, _ = transfer(LARGE, LOOPBACK)
    pixels = [event.frame.pixels for event in events if isinstance(event, Arrived)]
    assert not any(p.flags.owndata or p.flags.writeable for p in pixels)
    assert all(p.flags.aligned and p.flags.c_contiguous for p in pixels)


def test_a_cable_that_is_cut_in_the_middle_of_frames_costs_nothing() -> None:
    events, report, receiver = transfer(LARGE, LOOPBACK, cut_after=5 * MIB + 12345)
    *arrived, ended = events
    assert all(isinstance(e, Arrived) and same(e.frame, f) for e, f in zip(arrived, make_frames(LARGE), strict=True))
    assert isinstance(ended, Ended)
    assert report.retransmitted > 0
    assert receiver.report.dialled >= 6


def test_the_end_is_confirmed_over_a_connection_that_breaks_at_the_end() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender, Cable(sender.address) as cable:
        sending = Sending(sender, list(make_frames(SMALL)))
        with FrameReceiver(cable.address) as receiver:
            *arrived, _ = events_of(receiver, acknowledge=False)
            cable.cut()
            receiver.ack(len(arrived) - 1)
        sending.join(20)
        assert sending.report is not None
        assert sending.report.acked == 12


def test_a_receiver_that_sleeps_stops_the_sender_within_the_credit() -> None:
    credit, frames = 16, 150
    scan = replace(LARGE, projections=frames)
    process = psutil.Process()
    with FrameSender(LOOPBACK, scan) as sender, FrameReceiver(sender.address, credit_bytes=credit * MIB) as receiver:
        source = (make_frame(scan, FrameKind.PROJECTION, index) for index in range(frames))
        before = process.memory_info().rss
        sending = Sending(sender, source)  # type: ignore[arg-type]
        eventually(lambda: sender.report.projections >= credit)
        time.sleep(0.5)  # nothing tells that no more comes
        assert sender.report.projections == credit
        peak = 0
        for event in events_of(receiver):
            assert sender.report.projections - sender.report.acked <= credit
            if isinstance(event, Arrived) and event.seq % 10 == 0:
                peak = max(peak, process.memory_info().rss)
        sending.join(20)
    assert sending.report is not None
    assert sending.report.blocked_s > 0.5
    # credit at each end of one process, and what the allocator keeps
    assert peak - before < (2 * credit + 16) * MIB


def test_a_slow_source_is_neither_lost_nor_silent(caplog: pytest.LogCaptureFixture) -> None:
    patience = {"silent_timeout_s": 0.7, "heartbeat_s": 0.1}
    with (
        FrameSender(LOOPBACK, SMALL, **patience) as sender,
        FrameReceiver(sender.address, stall_timeout_s=1.0, **patience) as receiver,
    ):
        assert receiver.scan() == SMALL
        assert receiver.next(1.5) is None
        sending = Sending(sender, list(make_frames(SMALL)))
        assert len(list(events_of(receiver))) == 13
        receiver.close()
        sending.join(5)
        assert sending.report is not None
        assert receiver.report.dialled == 1
    assert "has sent no frame for 1 s" in caplog.text


def test_a_path_that_goes_silent_is_given_up_for_another() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender, Cable(sender.address) as cable:
        sending = Sending(sender, list(make_frames(SMALL)))
        with FrameReceiver(cable.address, credit_bytes=0, silent_timeout_s=0.2, heartbeat_s=0.05) as receiver:
            first = receiver.next(5)
            assert isinstance(first, Arrived)
            cable.dead = True
            receiver.ack(first.seq)
            while cable.connections < 3:
                assert receiver.next(0.1) is None or cable.connections == 1
            cable.dead = False
            assert len(list(events_of(receiver))) >= 11
        sending.join(5)
        assert sending.report is not None
        assert sending.report.acked == 12


def test_a_receiver_may_come_before_its_producer() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender:
        address = sender.address
    with FrameReceiver(address, **HASTY) as receiver:
        with pytest.raises(PeerLostError, match="no scan was announced"):
            receiver.scan(0.3)
        with FrameSender(address, SMALL, **HASTY) as sender:
            sending = Sending(sender, list(make_frames(SMALL)))
            assert receiver.scan() == SMALL
            assert len(list(events_of(receiver))) == 13
            receiver.close()
            sending.join(5)


def test_a_relay_that_accepts_early_and_leads_nowhere_is_tried_again() -> None:
    with FrameSender(LOOPBACK, SMALL) as gone:
        address = gone.address
    with Cable(address) as cable, FrameReceiver(cable.address, **HASTY) as receiver:
        eventually(lambda: cable.connections > 1)
        with FrameSender(address, SMALL, **HASTY):
            assert receiver.scan(5) == SMALL


def test_a_producer_that_never_comes_is_an_error_that_says_where_and_why() -> None:
    with FrameSender(LOOPBACK, SMALL) as gone:
        address = gone.address
    with FrameReceiver(address, connect_timeout_s=0.4) as receiver:
        started = time.monotonic()
        with pytest.raises(
            PeerLostError, match=rf"{address}: timed out after 0.4 s waiting for the producer \(.*connection refused"
        ):
            receiver.scan()
        assert time.monotonic() - started < 3
        with pytest.raises(PeerLostError):
            receiver.next(0)


def test_a_receiver_that_never_comes_is_an_error_that_says_where() -> None:
    with FrameSender(LOOPBACK, SMALL, peer_timeout_s=0.4) as sender:
        with pytest.raises(PeerLostError, match=rf"{sender.address}: timed out after 0.4 s waiting for a receiver"):
            sender.send(next(make_frames(SMALL)))
        with pytest.raises(PeerLostError):
            sender.finish()


def test_a_receiver_that_vanishes_is_an_error_after_the_outage_time() -> None:
    with (
        FrameSender(LOOPBACK, SMALL, outage_timeout_s=0.8, **HASTY) as sender,
        Cable(sender.address) as cable,
        FrameReceiver(cable.address, credit_bytes=0, **HASTY) as receiver,
    ):
        receiver.scan()
        cable.dead = True
        sending = Sending(sender, list(make_frames(SMALL)))
        sending.join(5)
    assert isinstance(sending.error, PeerLostError)
    assert "no contact with the receiver for 0.8 s" in str(sending.error)


PRODUCER = """
    import sys, time
    from tests.native_stream import make_frames, make_scan
    from ministream.transport.native import FrameSender
    with FrameSender("tcp://127.0.0.1:0", make_scan()) as sender:
        print(sender.address, flush=True)
        for frame in list(make_frames(make_scan()))[:6]:
            sender.send(frame)
        time.sleep(60)
"""


@pytest.mark.parametrize("through_a_tunnel", [False, True])
def test_a_producer_that_dies_is_given_up_after_the_outage_time(through_a_tunnel: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRODUCER)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    assert process.stdout is not None
    with process, Cable(process.stdout.readline().strip()) as cable:
        address = cable.address if through_a_tunnel else f"tcp://127.0.0.1:{cable.target_port}"
        with FrameReceiver(address, outage_timeout_s=1.0, **HASTY) as receiver:
            arrived = [receiver.next(10) for _ in range(6)]
            assert all(isinstance(event, Arrived) for event in arrived)
            process.send_signal(signal.SIGKILL)
            started = time.monotonic()
            event = receiver.next(10)
            assert isinstance(event, Lost)
            assert "no contact with the producer for 1 s (last attempt: " in event.text
            assert 0.5 < time.monotonic() - started < 4
            assert receiver.next(1) is None


def test_bad_frames_are_refused_and_the_stream_goes_on() -> None:
    scan = replace(SMALL, dtype="<f4")
    frames = list(make_frames(scan))
    for number in (3, 11):
        frames[number] = replace(frames[number], angle_rad=np.nan)
    with FrameSender(LOOPBACK, scan) as sender, FrameReceiver(sender.address) as receiver:
        sending = Sending(sender, frames)
        *events, ended = events_of(receiver)
        assert [e.seq for e in events if isinstance(e, Refused)] == [3, 11]
        assert {(e.reason, e.text) for e in events if isinstance(e, Refused)} == {
            ("not-finite", "flat 1 has the angle nan, expected a finite number"),
            ("not-finite", "projection 6 has the angle nan, expected a finite number"),
        }
        assert sum(isinstance(e, Arrived) for e in events) == 10
        assert isinstance(ended, Ended)
        receiver.close()
        sending.join(5)
        assert sending.report is not None
        assert (sending.report.acked, sending.report.refused) == (12, 2)
        assert (receiver.report.received, receiver.report.refused) == (10, 2)


def test_a_frame_that_is_not_of_the_scan_is_refused_before_it_is_sent() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender, pytest.raises(FrameError) as raised:
        sender.send(make_frame(LARGE, FrameKind.DARK, 0))
    assert raised.value.reason == "size"


def test_dropped_frames_are_told_at_the_end() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender, FrameReceiver(sender.address) as receiver:
        receiver.scan(5)
        sender.omit(range(3, 10), reason="drop-oldest", at_s=1.7e9)
        finishing = threading.Thread(target=sender.finish)
        finishing.start()
        assert receiver.next(5) == Omitted(0, (3, 4, 5, 6, 7, 8, 9), "drop-oldest", 1.7e9)
        assert receiver.next(5) == Ended(native.Totals(omissions=1, drops={"drop-oldest": 7}))
        receiver.close()
        finishing.join(5)
        assert sender.report.dropped == 7


# ends that leave


def test_a_receiver_that_leaves_early_ends_the_sender_with_its_words() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender:
        with FrameReceiver(sender.address, credit_bytes=0) as receiver:
            sending = Sending(sender, list(make_frames(SMALL)))
            receiver.scan()
            receiver.close("no space left on device")
        sending.join(5)
        assert isinstance(sending.error, PeerLostError)
        assert "no space left on device" in str(sending.error)


def test_a_producer_that_leaves_early_ends_the_receiver_with_its_words() -> None:
    with FrameSender(LOOPBACK, SMALL) as sender, FrameReceiver(sender.address) as receiver:
        for frame in list(make_frames(SMALL))[:7]:
            sender.send(frame)
        sender.abort("the shutter closed")
        *arrived, lost = events_of(receiver)
        assert len(arrived) == 7
        assert lost == Lost("the producer aborted: the shutter closed", native.Totals(darks=2, flats=3, projections=2))
        with pytest.raises(PeerLostError, match="is closed"):
            sender.send(next(make_frames(SMALL)))


def test_a_failure_in_either_job_is_told_to_the_other() -> None:
    with pytest.raises(ZeroDivisionError), FrameSender(LOOPBACK, SMALL) as sender:
        receiver = FrameReceiver(sender.address)
        receiver.scan()
        raise ZeroDivisionError("of the source")
    assert receiver.next(5) == Lost("the producer aborted: the producer failed: of the source", native.Totals())
    receiver.close()


# peers that should not be there


def test_a_second_receiver_is_refused_and_the_first_is_not_disturbed(caplog: pytest.LogCaptureFixture) -> None:
    with FrameSender(LOOPBACK, SMALL) as sender, FrameReceiver(sender.address) as first:
        assert first.scan() == SMALL
        for _ in range(2):
            with (
                FrameReceiver(sender.address, connect_timeout_s=0.3) as second,
                pytest.raises(PeerError, match=rf"{sender.address}: timed out .*another receiver is connected"),
            ):
                second.scan()
        sending = Sending(sender, list(make_frames(SMALL)))
        assert len(list(events_of(first))) == 13
        first.close()
        sending.join(5)
        assert sending.report is not None
    assert caplog.text.count("rejected: another receiver is connected") == 1


def test_another_scan_than_the_one_wanted_is_refused() -> None:
    with (
        FrameSender(LOOPBACK, SMALL) as sender,
        FrameReceiver(sender.address, scan_id="scan-2") as receiver,
        pytest.raises(PeerError, match="'scan-2' was requested, this is scan 'scan-1'"),
    ):
        receiver.scan()


def dealer(address: str) -> zmq.Socket[bytes]:
    stranger = zmq.Context.instance().socket(zmq.DEALER)
    stranger.linger = 0
    stranger.connect(address)
    return stranger


def test_garbage_on_the_data_port_is_told_once_and_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with FrameSender(LOOPBACK, SMALL) as sender, FrameReceiver(sender.address) as receiver:
        assert receiver.scan() == SMALL
        port = int(sender.address.rpartition(":")[2])
        random = np.random.default_rng(1)
        for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 100, bytes(1000), random.bytes(5000)):
            for _ in range(2):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(garbage)
                    time.sleep(0.02)
        with dealer(sender.address) as polite:
            for parts in ([b"garbage"], [b"x"] * 5, [bytes(70_000)], [b""]):
                polite.send_multipart(parts)
                time.sleep(0.02)
        sending = Sending(sender, list(make_frames(SMALL)))
        assert len(list(events_of(receiver))) == 13
        receiver.close()
        sending.join(5)
        assert sending.report is not None
    assert caplog.text.count("not of the Mini-Stream protocol") == 1
    assert "handshake" not in caplog.text, "probes are expected"


def version_7(message: native.Message) -> bytes:
    body = native.encode(message)[14:]
    return struct.pack(">4sH8s", b"MnSt", 7, xxhash.xxh3_64_digest(body, seed=7)) + body


def test_a_receiver_of_another_version_is_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    with FrameSender(LOOPBACK, SMALL, peer_timeout_s=0.6) as sender:
        with dealer(sender.address) as stranger:
            stranger.send(version_7(native.Hello(receiver="a" * 32, resume=0, limit=4)))
            assert stranger.poll(5000)
            answer = native.decode([stranger.recv()])
        assert isinstance(answer, native.Bye)
        assert "version 7 of the Mini-Stream protocol, this end version 6" in answer.text
        with pytest.raises(PeerLostError, match=r"timed out .* rejected: the peer uses version 7"):
            sender.finish()
    assert "rejected: the peer uses version 7" in caplog.text


def test_a_producer_of_another_version_is_an_error() -> None:
    context = zmq.Context()
    with context, context.socket(zmq.ROUTER) as producer:
        port = producer.bind_to_random_port("tcp://127.0.0.1")
        with FrameReceiver(f"tcp://127.0.0.1:{port}") as receiver:
            peer, _ = producer.recv_multipart()
            producer.send_multipart([peer, version_7(native.Heartbeat())])
            with pytest.raises(ProtocolError, match=r"uses version 7 .* this end version 6"):
                receiver.scan()
            _, answer = producer.recv_multipart()
            assert isinstance(native.decode([answer]), native.Bye)


def test_a_port_in_use_is_named() -> None:
    with (
        FrameSender(LOOPBACK, SMALL) as sender,
        pytest.raises(ConfigError, match=f"cannot bind {sender.address} .already in use"),
    ):
        FrameSender(sender.address, SMALL)


def test_mistakes_in_the_arguments_come_out_at_once() -> None:
    with pytest.raises(ConfigError, match="must begin with one of"):
        FrameReceiver("127.0.0.1:5000")
    with pytest.raises(InputError, match="cannot be streamed"):
        FrameSender(LOOPBACK, replace(SMALL, cols=0))
    with (
        FrameReceiver("inproc://nobody", connect_timeout_s=0.1) as receiver,
        pytest.raises(ValueError, match="frame 3"),
    ):
        receiver.ack(3)


# the machine


def test_threads_and_descriptors_are_given_back() -> None:
    def run() -> tuple[int, int]:
        transfer(SMALL, LOOPBACK)
        return threading.active_count(), psutil.Process().num_fds()

    first = run()
    assert [run() for _ in range(5)] == [first] * 5


def test_an_unforeseen_failure_of_the_thread_comes_out_in_the_caller() -> None:
    class Failing(Driver):
        def _run(self) -> None:
            raise ZeroDivisionError("unforeseen")

        def _wake(self) -> None:
            pass

    driver = Failing("failing", "nowhere")
    driver._thread.start()
    driver._thread.join(5)
    with pytest.raises(ZeroDivisionError, match="unforeseen"):
        driver._raise_failure()
