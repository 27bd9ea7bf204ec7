"""Moving bytes: plain and TLS ends over socket pairs, their ends, their cuts, and the rate limit."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from ministream.tunnel.certificates import KeyPair, make_session_pair
from ministream.tunnel.proxy import _flow
from ministream.tunnel.proxy._ends import PlainEnd, ProxyEnd, Wait
from ministream.tunnel.proxy._flow import Bucket, CopyFlow, SpliceFlow
from ministream.tunnel.proxy._sockets import tune
from ministream.tunnel.proxy._tls import TlsEnd, TlsError, TruncatedError, make_context

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

    def end(sock: socket.socket, own: KeyPair, other: KeyPair, *, accepts: bool) -> TlsEnd:
        context = make_context(
            certificate=own.certificate.decode(), key=own.key.decode(), peer=other.certificate.decode(), accepts=accepts
        )
        return TlsEnd(sock, context, accepts=accepts)

    ends = end(near, mine, theirs, accepts=False), end(far, theirs, mine, accepts=True)
    deadline = time.monotonic() + 10
    while [end.handshake() for end in ends] != [Wait.DONE, Wait.DONE]:
        assert time.monotonic() < deadline
    # The server's tickets, which would otherwise lie unread.
    assert ends[0].read_into(memoryview(bytearray(1))) is None
    yield ends
    near.close()
    far.close()


def read_all(end: ProxyEnd, count: int | None = None) -> bytes:
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
    assert [end.cipher for end in tls] == ["TLSv1.3 TLS_AES_128_GCM_SHA256"] * 2
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
    with pytest.raises(TlsError, match="TLS: "):
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


def test_a_connection_within_the_machine_is_not_paced() -> None:
    one, two = pair()
    tune(one)
    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    one.close()
    two.close()


def test_idle_flows_hold_no_buffer() -> None:
    source, entry = pair()
    exit_, sink = pair()
    before = len(_flow._spare)
    flows = [CopyFlow(PlainEnd(entry), PlainEnd(exit_), UNLIMITED) for _ in range(20)]
    for flow in flows:
        flow.step()
        assert flow.wait is Wait.READ
    assert len(_flow._spare) <= max(before, 1)
    for sock in (source, entry, exit_, sink):
        sock.close()


def test_what_came_before_a_cut_is_delivered_first(tls: tuple[TlsEnd, TlsEnd]) -> None:
    near, far = tls
    near.write(memoryview(b"the last word"))
    deadline = time.monotonic() + 10
    buffer = memoryview(bytearray(1 << 16))
    far.sock.setblocking(True)
    assert far.sock.recv(1, socket.MSG_PEEK)
    far.sock.setblocking(False)
    # Both in one go: bytes that wait, and behind them the end.
    near.sock.shutdown(socket.SHUT_WR)
    while not (count := far.read_into(buffer)):
        assert time.monotonic() < deadline
    assert bytes(buffer[:count]) == b"the last word"
    with pytest.raises(TruncatedError):
        far.read_into(buffer)


def test_what_tls_holds_already_is_not_waited_for(tls: tuple[TlsEnd, TlsEnd]) -> None:
    """A rate limit takes a little at a time out of records that have left the socket long ago."""
    near, far = tls
    message = bytes(range(256)) * 40
    near.write(memoryview(message))
    exit_, sink = pair()
    flow = CopyFlow(far, PlainEnd(exit_), Bucket(40_000))
    received = bytearray()
    deadline = time.monotonic() + 20
    while len(received) < len(message):
        flow.step()
        with contextlib.suppress(BlockingIOError):
            received += sink.recv(1 << 16)
        # what has left for the kernel may take a moment to the sink
        if flow.wait is Wait.READ and flow.moved < len(message):
            assert select.select([far.sock], [], [], 1)[0], "waits for a socket that has nothing"
        assert time.monotonic() < deadline
    assert received == message
    for sock in (exit_, sink):
        sock.close()
