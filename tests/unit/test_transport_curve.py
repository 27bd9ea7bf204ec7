"""The encrypted stream over real sockets: the same frames, to nobody else, and a clear error in bounded time."""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from ministream.errors import ConfigError, PeerError, PeerLostError
from ministream.model import CurveKeys, Frame, Scan
from ministream.transport import Arrived, Ended
from ministream.transport._channels import dial, listen
from ministream.transport.native import FrameReceiver, FrameSender
from tests.cable import Forger, Tap
from tests.native_stream import make_frames, make_scan, same

LOOPBACK = "tcp://127.0.0.1:0"
LIMIT = 100_000
SCAN = make_scan(rows=64, cols=96, projections=20, sample="a secret sample")
# Impatient, so that what takes seconds in life takes tenths here.
HASTY = {"silent_timeout_s": 0.5, "heartbeat_s": 0.1}


def new_key() -> tuple[bytes, bytes]:
    """Secret and public key."""
    public, secret = zmq.curve_keypair()
    return z85.decode(secret), z85.decode(public)


OUR_SECRET, OUR_PUBLIC = new_key()
THEIR_SECRET, THEIR_PUBLIC = new_key()
STRANGER_SECRET, STRANGER_PUBLIC = new_key()
PRODUCER = CurveKeys(secret=OUR_SECRET, peers=frozenset({THEIR_PUBLIC}))
RECEIVER = CurveKeys(secret=THEIR_SECRET, peers=frozenset({OUR_PUBLIC}))
UNLISTED = CurveKeys(secret=STRANGER_SECRET, peers=frozenset({OUR_PUBLIC}))
# Which of the two it is depends on who notices first.
ONE_SIDED = "only one side encrypts: give --curve to both|disconnected before the ZeroMQ handshake"
MISLED = CurveKeys(secret=THEIR_SECRET, peers=frozenset({STRANGER_PUBLIC}))


class Sending(threading.Thread):
    """Sends a whole scan from a thread of its own."""

    def __init__(self, sender: FrameSender, scan: Scan) -> None:
        super().__init__()
        self._sender, self._scan = sender, scan
        self.error: PeerError | None = None
        self.start()

    def run(self) -> None:
        try:
            for frame in make_frames(self._scan):
                self._sender.send(frame)
            self._sender.finish()
        except PeerError as error:
            self.error = error


def received(receiver: FrameReceiver) -> list[Frame]:
    """Every frame up to the end of the scan."""
    frames = []
    while (event := receiver.next(10)) is not None:
        if isinstance(event, Arrived):
            frames.append(event.frame)
            receiver.ack(event.seq)
        else:
            assert isinstance(event, Ended), event
    return frames


def assert_whole(frames: list[Frame]) -> None:
    assert len(frames) == SCAN.darks + SCAN.flats + SCAN.projections
    assert all(same(*pair) for pair in zip(frames, make_frames(SCAN), strict=True))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_scan_arrives_as_it_was_sent(scheme: str, tmp_path: Path) -> None:
    url = LOOPBACK if scheme == "tcp" else f"ipc://{tmp_path}/socket"
    with FrameSender(url, SCAN, keys=PRODUCER) as sender:
        sending = Sending(sender, SCAN)
        with FrameReceiver(sender.address, keys=RECEIVER) as receiver:
            assert receiver.scan(5) == SCAN
            assert_whole(received(receiver))
        sending.join(10)
        assert sending.error is None
        assert sender.report.acked == len(list(make_frames(SCAN)))


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_man_in_the_middle_sees_no_pixel_and_no_name(encrypted: bool) -> None:
    ours, theirs = (PRODUCER, RECEIVER) if encrypted else (None, None)
    with FrameSender(LOOPBACK, SCAN, keys=ours) as sender, Tap(sender.address) as tap:
        sending = Sending(sender, SCAN)
        with FrameReceiver(tap.address, keys=theirs) as receiver:
            assert_whole(received(receiver))
        sending.join(10)
    pieces = [frame.pixels.tobytes()[:32] for frame in make_frames(SCAN)]
    pieces += [SCAN.scan_id.encode(), SCAN.sample.encode()]
    assert len(tap.seen) > SCAN.projections * SCAN.frame_bytes
    for piece in pieces:
        assert (piece in tap.seen) is not encrypted


def test_a_forged_byte_costs_a_connection_and_no_frame() -> None:
    with FrameSender(LOOPBACK, SCAN, keys=PRODUCER, **HASTY) as sender, Forger(sender.address, 100_000) as forger:
        sending = Sending(sender, SCAN)
        with FrameReceiver(forger.address, keys=RECEIVER, **HASTY) as receiver:
            frames = received(receiver)
            assert receiver.report.dialled > 1
            assert receiver.report.refused == 0
        sending.join(10)
    assert_whole(frames)


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        pytest.param(PRODUCER, UNLISTED, "key is not among those that the producer admits", id="unlisted receiver"),
        pytest.param(PRODUCER, MISLED, "compare --curve and the public keys", id="another producer's key"),
        pytest.param(PRODUCER, None, ONE_SIDED, id="plain receiver"),
        pytest.param(None, RECEIVER, ONE_SIDED, id="plain producer"),
    ],
)
def test_who_does_not_belong_gets_nothing_and_both_ends_say_why(
    ours: CurveKeys | None, theirs: CurveKeys | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    started = time.monotonic()
    with FrameSender(LOOPBACK, SCAN, keys=ours, peer_timeout_s=2.0) as sender, Tap(sender.address) as tap:
        sending = Sending(sender, SCAN)
        with FrameReceiver(tap.address, keys=theirs, connect_timeout_s=1.5) as receiver:
            with pytest.raises(PeerLostError, match=why):
                receiver.scan(10)
            assert receiver.report.received == 0
        sending.join(10)
    assert isinstance(sending.error, PeerLostError), "nobody has come"
    assert time.monotonic() - started < 8
    assert "connection ended" in caplog.text
    assert SCAN.sample.encode() not in tap.seen
    for secret in (OUR_SECRET, THEIR_SECRET, STRANGER_SECRET):
        assert secret not in tap.seen
        for form in (secret.hex(), z85.encode(secret).decode(), repr(secret)):
            assert form not in caplog.text


def test_a_receiver_with_keys_gives_up_on_a_producer_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with FrameReceiver(url, keys=RECEIVER, connect_timeout_s=0.5) as receiver, pytest.raises(PeerLostError):
            receiver.scan(10)
        assert time.monotonic() - started < 5


def test_strangers_do_not_disturb_a_stream_and_leave_nothing() -> None:
    with FrameSender(LOOPBACK, SCAN, keys=PRODUCER) as sender:
        with FrameReceiver(sender.address, keys=RECEIVER, credit_bytes=2 * SCAN.frame_bytes) as receiver:
            receiver.scan(5)
            before = open_files()
            for keys in (UNLISTED, MISLED, None) * 5:
                stranger = dial(sender.address, max_message_bytes=LIMIT, keys=keys)
                stranger.send([b"let me in"])
                while not stranger.broken:
                    assert stranger.recv(5) is None
                stranger.close()
            for rubbish in (b"\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n", b""):
                address = sender.address.removeprefix("tcp://").split(":")
                with socket.create_connection((address[0], int(address[1]))) as stranger_socket:
                    stranger_socket.sendall(rubbish)
            sending = Sending(sender, SCAN)
            assert_whole(received(receiver))
            assert open_files() <= before + 2
            assert receiver.report.dialled == 1
        sending.join(10)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_on_a_part_is_the_same(up: bool, excess: int) -> None:
    listener = listen(LOOPBACK, max_message_bytes=LIMIT, keys=PRODUCER)
    channel = dial(listener.address, max_message_bytes=LIMIT, keys=RECEIVER)
    try:
        channel.send([b"hello"])
        while (first := listener.recv(5)) is None:
            pass
        message = [bytes(LIMIT + excess)]
        if up:
            channel.send(message)
            came = listener.recv(1)
        else:
            assert listener.send(first[0], message)
            came = channel.recv(1)
        assert (came is not None) is (excess == 0)
    finally:
        channel.close()
        listener.close()


def test_within_a_process_there_is_nothing_to_encrypt() -> None:
    for use, keys in ((listen, PRODUCER), (dial, RECEIVER)):
        with pytest.raises(ConfigError, match="stays within this process and cannot be encrypted"):
            use("inproc://stream", max_message_bytes=LIMIT, keys=keys)
