"""Moving bytes: plain and TLS ends over socket pairs, their ends, their cuts, and the rate limit."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from ministream.tunnel.certificates import make_session_pair
from ministream.tunnel.proxy._ends import End, PlainEnd, TlsEnd, TruncatedError, Wait
from ministream.tunnel.proxy._flow import Bucket, CopyFlow, SpliceFlow
from ministream.tunnel.proxy._relay_worker import _tls

UNLIMITED = Bucket(0)


def pair() -> tuple[socket.socket, socket.socket]:
    """A TCP connection: splice and half-close behave as in production."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    one.setblocking(False)
    two.setblocking(False)
    return one, two


@pytest.fixture
def tls() -> Iterator[tuple[TlsEnd, TlsEnd]]:
    mine, theirs = make_session_pair(1), make_session_pair(1)
    near, far = pair()

    def context(own: object, other: object, *, accepts: bool) -> ssl.SSLContext:
        orders = {
            "certificate": own.certificate.decode(),  # type: ignore[attr-defined]
            "key": own.key.decode(),  # type: ignore[attr-defined]
            "peer": other.certificate.decode(),  # type: ignore[attr-defined]
        }
        return _tls(orders, accepts=accepts)[0]

    ends = (
        TlsEnd(near, context(mine, theirs, accepts=False), accepts=False),
        TlsEnd(far, context(theirs, mine, accepts=True), accepts=True),
    )
    deadline = time.monotonic() + 10
    while [end.handshake() for end in ends] != [Wait.DONE, Wait.DONE]:
        assert time.monotonic() < deadline
    yield ends
    near.close()
    far.close()


def read_all(end: End, count: int | None = None) -> bytes:
    """Until the end of the stream, or `count` bytes."""
    received, buffer = bytearray(), memoryview(bytearray(1 << 16))
    deadline = time.monotonic() + 10
    while count is None or len(received) < count:
        found = end.read_into(buffer)
        if found == 0:
            assert count is None
            break
        received += buffer[: found or 0]
        assert time.monotonic() < deadline
    return bytes(received)


def test_tls_ends_speak_tls_1_3_to_the_right_certificate(tls: tuple[TlsEnd, TlsEnd]) -> None:
    assert [end.cipher.split()[0] for end in tls] == ["TLSv1.3", "TLSv1.3"]
    assert all(end.certificate() for end in tls)


def test_one_direction_may_end_before_the_other(tls: tuple[TlsEnd, TlsEnd]) -> None:
    near, far = tls
    near.write(memoryview(b"question"))
    near.finish()
    assert read_all(far) == b"question"
    far.write(memoryview(b"answer"))
    far.finish()
    assert read_all(near) == b"answer"


def test_ending_a_direction_keeps_what_had_arrived_unread(tls: tuple[TlsEnd, TlsEnd]) -> None:
    near, far = tls
    message = bytes(range(256)) * 200
    far.write(memoryview(message))
    assert far.flush()
    # One byte read: the rest waits inside the TLS machine while our own direction ends.
    buffer = memoryview(bytearray(1))
    deadline = time.monotonic() + 10
    while not near.read_into(buffer):
        assert time.monotonic() < deadline
    near.finish()
    assert read_all(near, len(message) - 1) == message[1:]
    far.write(memoryview(b"more"))
    assert read_all(near, 4) == b"more"
    assert read_all(far) == b""


def test_a_cut_is_not_an_end(tls: tuple[TlsEnd, TlsEnd]) -> None:
    near, far = tls
    near.write(memoryview(b"half a mess"))
    near.sock.close()
    assert read_all(far, 11) == b"half a mess"
    with pytest.raises(TruncatedError):
        read_all(far)


def test_tampering_is_noticed(tls: tuple[TlsEnd, TlsEnd]) -> None:
    near, far = tls
    near.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        read_all(far)


def run(flow: SpliceFlow | CopyFlow, sink: socket.socket, expected: int) -> bytes:
    received = bytearray()
    deadline = time.monotonic() + 20
    while flow.wait is not Wait.DONE or len(received) < expected:
        if flow.wait is not Wait.DONE:
            flow.step()
        with contextlib.suppress(BlockingIOError):
            received += sink.recv(1 << 18)
        assert time.monotonic() < deadline
    return bytes(received)


@pytest.mark.parametrize("kind", [SpliceFlow, CopyFlow])
def test_a_flow_carries_everything_and_then_the_end(kind: type[SpliceFlow | CopyFlow]) -> None:
    source, entry = pair()
    exit_, sink = pair()
    message = bytes(range(256)) * 4000
    flow = kind(PlainEnd(entry), PlainEnd(exit_), UNLIMITED)
    sent = 0
    received = bytearray()
    deadline = time.monotonic() + 20
    while len(received) < len(message):
        if sent < len(message):
            with contextlib.suppress(BlockingIOError):
                sent += source.send(message[sent:])
        elif sent == len(message):
            source.shutdown(socket.SHUT_WR)
            sent += 1
        flow.step()
        with contextlib.suppress(BlockingIOError):
            received += sink.recv(1 << 18)
        assert time.monotonic() < deadline
    run(flow, sink, 0)
    assert received == message
    assert flow.moved == len(message)
    assert sink.recv(1) == b""
    # The other direction is still open.
    sink.send(b"back")
    flow.close()
    for sock in (source, entry, exit_, sink):
        sock.close()


@pytest.mark.parametrize("kind", [SpliceFlow, CopyFlow])
def test_a_sink_that_does_not_read_stops_the_flow(kind: type[SpliceFlow | CopyFlow]) -> None:
    source, entry = pair()
    exit_, sink = pair()
    flow = kind(PlainEnd(entry), PlainEnd(exit_), UNLIMITED)
    chunk = bytes(1 << 16)
    taken = 0
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.5:
        try:
            taken += source.send(chunk)
            quiet_since = time.monotonic()
        except BlockingIOError:
            pass
        flow.step()
        assert taken < 1 << 28, "memory without bounds"
    assert flow.wait in (Wait.WRITE, Wait.TURN)
    flow.close()
    for sock in (source, entry, exit_, sink):
        sock.close()


def test_the_bucket_keeps_the_rate() -> None:
    bucket = Bucket(1_000_000)
    moved = 0
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < 0.5:
        granted = bucket.grant(10_000)
        bucket.spend(granted)
        moved += granted
    assert moved <= 1_000_000 * elapsed + 100_000 + 10_000
    assert moved >= 1_000_000 * elapsed * 0.7
    assert bucket.pause_s() < 0.1
