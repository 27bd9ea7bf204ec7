"""Strangers on the data port: few, not for long, and never in the way of the receiver."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq

from ministream.transport import Arrived, Ended
from ministream.transport._channels import _guard
from ministream.transport._channels._guard import HELLO_S, MAX_STRANGERS, ConnectionGuard
from ministream.transport.native import FrameReceiver, FrameSender
from tests.native_stream import make_frames, make_scan

LOOPBACK = "127.0.0.1"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0), backlog=MAX_STRANGERS + 8) as server:
        yield server


class Peer:
    """Both ends of one TCP connection."""

    def __init__(self, server: socket.socket, stack: ExitStack) -> None:
        self.far = stack.enter_context(socket.create_connection(server.getsockname()))
        self.far.settimeout(5.0)
        self.near = stack.enter_context(server.accept()[0])

    @property
    def ended(self) -> bool:
        self.far.setblocking(False)
        try:
            return self.far.recv(1) == b""
        except BlockingIOError:
            return False


def test_who_says_no_hello_has_to_go_and_who_is_admitted_stays(server: socket.socket) -> None:
    guard = ConnectionGuard()
    with ExitStack() as stack:
        silent, receiver = Peer(server, stack), Peer(server, stack)
        for peer in (silent, receiver):
            guard.accepted(peer.near.fileno(), 100.0)
        guard.admit(receiver.near.fileno(), 100.0)
        assert guard.look(100.0 + HELLO_S - 0.1) == []
        (told,) = guard.look(100.0 + HELLO_S + 0.1)
        assert told == f"peer {LOOPBACK} sent no Hello within {HELLO_S:g} s"
        assert (silent.ended, receiver.ended) == (True, False)


def test_a_hello_that_overtakes_the_word_of_its_connection_admits_it(server: socket.socket) -> None:
    guard = ConnectionGuard()
    with ExitStack() as stack:
        receiver = Peer(server, stack)
        guard.admit(receiver.near.fileno(), 100.0)
        guard.accepted(receiver.near.fileno(), 100.1)
        assert guard.look(100.0 + HELLO_S + 1.0) == []
        assert not receiver.ended
        number = receiver.near.fileno()
        os.dup2(Peer(server, stack).near.fileno(), number)
        guard.accepted(number, 120.0)
        assert len(guard.look(120.0 + HELLO_S + 1.0)) == 1, "another connection is not admitted with it"


def test_who_talks_more_than_a_receiver_ever_does_has_to_go(server: socket.socket) -> None:
    guard = ConnectionGuard()
    with ExitStack() as stack:
        loud, usual = Peer(server, stack), Peer(server, stack)
        for peer in (loud, usual):
            guard.accepted(peer.near.fileno(), 100.0)
            guard.admit(peer.near.fileno(), 100.0)
        sent = 0
        while sent < 3 * 2**20:
            loud.far.sendall(bytes(2**18))
            sent += len(loud.near.recv(2**18, socket.MSG_WAITALL))
        usual.far.sendall(bytes(1000))
        (told,) = guard.look(100.2)
        assert "bytes in 0.2 s" in told
        assert (loud.ended, usual.ended) == (True, False)


def test_strangers_displace_the_oldest_of_their_own_address_and_no_receiver(server: socket.socket) -> None:
    guard = ConnectionGuard()
    with ExitStack() as stack:
        receiver = Peer(server, stack)
        guard.accepted(receiver.near.fileno(), 0.0)
        guard.admit(receiver.near.fileno(), 100.0)
        strangers = [Peer(server, stack) for _ in range(MAX_STRANGERS + 3)]
        for number, stranger in enumerate(strangers):
            guard.accepted(stranger.near.fileno(), 1.0 + number)
        assert [peer.ended for peer in strangers] == [True] * 3 + [False] * MAX_STRANGERS
        assert not receiver.ended


def test_a_descriptor_that_means_another_connection_by_now_is_left_alone(server: socket.socket) -> None:
    guard = ConnectionGuard()
    with ExitStack() as stack:
        gone, later = Peer(server, stack), Peer(server, stack)
        number = gone.near.fileno()
        guard.accepted(number, 0.0)
        gone.near.close()
        moved = socket.socket(fileno=later.near.detach())
        stack.enter_context(moved)
        assert guard.look(HELLO_S + 1) == []
        assert not guard.watching
        assert not later.ended


def test_five_hundred_strangers_do_not_keep_the_receiver_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guard, "HELLO_S", 0.5)
    scan = make_scan()
    with FrameSender(f"tcp://{LOOPBACK}:0", scan) as sender, ExitStack() as stack:
        port = int(sender.address.rpartition(":")[2])
        idle = [stack.enter_context(socket.create_connection((LOOPBACK, port))) for _ in range(500)]
        context = stack.enter_context(zmq.Context())
        polite = stack.enter_context(context.socket(zmq.DEALER))
        polite.linger = 0
        polite.connect(sender.address)
        polite.send(b"not a Hello")
        with FrameReceiver(sender.address) as receiver:
            assert receiver.scan(10) == scan
            for frame in make_frames(scan):
                sender.send(frame)
                event = receiver.next(5)
                assert isinstance(event, Arrived)
                receiver.ack(event.seq)
            for one in idle:
                one.settimeout(10)
                while one.recv(100):  # ZeroMQ's greeting, then the end
                    pass
            assert receiver.report.dialled == 1


def test_the_end_of_the_receiver_is_no_stranger(caplog: pytest.LogCaptureFixture) -> None:
    scan = make_scan(darks=0, flats=0, projections=1)
    with FrameSender(f"tcp://{LOOPBACK}:0", scan) as sender, FrameReceiver(sender.address, reports=True) as receiver:
        receiver.scan(5)
        sender.send(next(make_frames(scan)))
        event = receiver.next(5)
        assert isinstance(event, Arrived)
        receiver.ack(event.seq)
        receiver.conclude(written=True, complete=True)
        assert sender.finish().written is not None
        assert isinstance(receiver.next(5), Ended)
    assert caplog.text == ""


def test_bytes_that_are_no_handshake_disturb_nobody() -> None:
    """ZeroMQ takes some of them for a peer of ZMTP 1.0, and delivers messages that came over no descriptor."""
    noise = b"".join(bytes([2, 0, number]) for number in range(64))  # ZMTP 1.0: length, flags, body
    with FrameSender("tcp://127.0.0.1:0", make_scan(), peer_timeout_s=30.0) as sender:
        host, port = sender.address.removeprefix("tcp://").split(":")
        for _ in range(4):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(noise)
        with FrameReceiver(sender.address, connect_timeout_s=20.0) as receiver:
            assert receiver.scan() == make_scan()
            sender.abort("enough")
