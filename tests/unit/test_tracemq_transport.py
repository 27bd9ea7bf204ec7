"""The distributor wire over real sockets: ours against ours, against the recorded bytes, and against strangers."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from ministream.errors import ConfigError, PeerLostError, ProtocolError
from ministream.model import Slab
from ministream.transport.tracemq import TraceMqReceiver, TraceMqServer
from ministream.wire import tracemq
from ministream.wire.session import Arrived, Ended, Lost, Refused
from ministream.wire.tracemq import Assigned, DistributorSession, Projection
from tests.ports import free_ports
from tests.recordings import tracemq_messages

ANY = "tcp://127.0.0.1:0"
ROWS, COLS = 7, 5


def projections(count: int, rows: int = ROWS, cols: int = COLS) -> Iterator[Projection]:
    rng = np.random.default_rng(5)
    for k in range(count):
        pixels = rng.random((rows, cols), dtype=np.float32)
        yield Projection(projection_id=k, theta=k / 10, center=2.25, pixels=pixels)


def server(**changes) -> TraceMqServer:
    listen = changes.pop("listen", None) or f"tcp://127.0.0.1:{free_ports(10)}"
    return TraceMqServer(listen, **{"window": 4, "stall_timeout_s": 5.0} | changes)


def worker(address: str, rank: int = 0, size: int = 1, **changes) -> TraceMqReceiver:
    options = {"angle_unit": "radians", "connect_timeout_s": 5.0, "stall_timeout_s": 5.0}
    return TraceMqReceiver(address, rank=rank, size=size, **options | changes)


class WorkerThread(threading.Thread):
    """A worker that reads to the end, pausing after every projection."""

    def __init__(self, address: str, rank: int, size: int, pause_s: float = 0.0) -> None:
        super().__init__()
        self._arguments, self._pause_s = (address, rank, size), pause_s
        self.events: list = []
        self.times: list[float] = []
        self.slab: Slab | None = None
        self.start()

    def run(self) -> None:
        with worker(*self._arguments) as receiver:
            self.scan = receiver.scan()
            self.slab = receiver.slab
            while not self.events or not isinstance(self.events[-1], Ended | Lost):
                event = receiver.next(10)
                assert event is not None
                self.events.append(event)
                self.times.append(time.monotonic())
                time.sleep(self._pause_s)

    @property
    def pixels(self) -> np.ndarray:
        return np.array([event.frame.pixels for event in self.events if isinstance(event, Arrived)])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_worker_gets_its_rows_of_every_projection(size) -> None:
    sent = list(projections(20))
    with server() as distributor:
        workers = [WorkerThread(distributor.address, rank, size) for rank in range(size)]
        assert distributor.join(rows=ROWS, cols=COLS, timeout_s=5) == size
        for projection in sent:
            distributor.push(projection)
        distributor.finish()
        for one in workers:
            one.join()
    together = np.concatenate([one.pixels for one in workers], axis=1)
    np.testing.assert_array_equal(together, [projection.pixels for projection in sent])
    for one in workers:
        assert (one.scan.rows, one.scan.cols, one.scan.dtype, one.scan.axis_col) == (ROWS, COLS, "<f4", 1.75)
        arrived, ended = one.events[:-1], one.events[-1]
        assert [event.frame.index for event in arrived] == list(range(20))
        np.testing.assert_allclose([event.frame.angle_rad for event in arrived], np.arange(20) / 10, atol=1e-6)
        assert ended.totals.projections == 20
    assert sum(one.slab.rows for one in workers) == ROWS


def test_a_slow_worker_holds_nobody_up_within_the_window() -> None:
    with server(window=30) as distributor:
        fast, slow = WorkerThread(distributor.address, 0, 2), WorkerThread(distributor.address, 1, 2, pause_s=0.05)
        distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        for projection in projections(20):
            distributor.push(projection)
        distributor.finish()
        fast.join(), slow.join()
    took = {one: one.times[19] - one.times[0] for one in (fast, slow)}
    assert took[slow] > 0.9
    assert took[fast] < took[slow] / 2
    assert len(slow.pixels) == 20


def test_the_window_bounds_how_far_a_worker_lags() -> None:
    with server(window=3) as distributor:
        fast, slow = WorkerThread(distributor.address, 0, 2), WorkerThread(distributor.address, 1, 2, pause_s=0.02)
        distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        lags = []
        for pushed, projection in enumerate(projections(30)):
            distributor.push(projection)
            lags.append(pushed + 1 - len(slow.events))
        distributor.finish()
        fast.join(), slow.join()
    # Three wait in the server, one may be on its way, and one may just be taken in.
    assert max(lags[5:]) <= 5


def test_the_original_workers_bytes_get_the_recorded_answers(shared: Path) -> None:
    sent = np.load(shared / "vectors" / "tracemq-2ranks.npz")
    conversations: list[list[tuple[bool, bytes]]] = [[], []]
    for rank, from_distributor, message in tracemq_messages(shared):
        conversations[rank].append((from_distributor, message))
    context = zmq.Context()
    answers: list[list[bytes]] = [[], []]

    def replay(rank: int, address: str) -> None:
        host, port = tracemq.split_address(address)
        with context.socket(zmq.REQ) as socket:
            socket.connect(f"{host}:{port + rank}")
            for from_distributor, message in conversations[rank]:
                if from_distributor:
                    answers[rank].append(socket.recv())
                else:
                    socket.send(message)

    with server() as distributor:
        threads = [threading.Thread(target=replay, args=(rank, distributor.address)) for rank in range(2)]
        for thread in threads:
            thread.start()
        distributor.join(rows=5, cols=64, timeout_s=5)
        for k, (pixels, theta) in enumerate(zip(sent["proj"], sent["theta"], strict=True)):
            distributor.push(Projection(projection_id=20 + k, theta=float(theta), center=31.25, pixels=pixels))
        distributor.finish()
        for thread in threads:
            thread.join()
    context.term()
    for rank in range(2):
        recorded = [message for from_distributor, message in conversations[rank] if from_distributor]
        assert answers[rank] == recorded


class OriginalDistributor:
    """A REP socket in lock-step with one worker, with the padding that the original's C structures have.

    `spoil(k, message)` may change the k-th projection's message.
    """

    def __init__(self, count: int, spoil=lambda k, message: message, finish: bool = True) -> None:
        self._count, self._spoil, self._finish = count, spoil, finish
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.set(zmq.RCVTIMEO, 5000)
        self._socket.bind(ANY)
        self.address = self._socket.get_string(zmq.LAST_ENDPOINT)

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._thread.join()
        self._socket.close(linger=1000)
        self._context.term()

    def _run(self) -> None:
        conversation = DistributorSession(peer="worker")
        conversation.receive(self._socket.recv())
        assigned = Assigned(rows=ROWS, cols=COLS, slab=Slab(0, ROWS))
        self._socket.send(self._padded(conversation.assign(assigned), 8))
        for k, projection in enumerate(projections(self._count)):
            conversation.receive(self._socket.recv())
            self._socket.send(self._spoil(k, self._padded(conversation.projection(projection), 12)))
        if self._finish:
            conversation.receive(self._socket.recv())
            self._socket.send(self._padded(conversation.finish(), 8))
            conversation.receive(self._socket.recv())

    @staticmethod
    def _padded(message: memoryview, padding: int) -> bytearray:
        padded = bytearray(message) + b"\xaa" * padding
        struct.pack_into("<Q", padded, 16, len(padded))
        return padded


def read_all(receiver: TraceMqReceiver) -> list:
    receiver.scan()
    events = []
    while not events or not isinstance(events[-1], Ended | Lost):
        event = receiver.next(10)
        assert event is not None
        events.append(event)
    return events


def test_the_original_distributor_is_read() -> None:
    with OriginalDistributor(6) as distributor, worker(distributor.address) as receiver:
        events = read_all(receiver)
    np.testing.assert_array_equal(
        [event.frame.pixels for event in events[:-1]], [projection.pixels for projection in projections(6)]
    )
    assert events[-1].totals.projections == 6


def test_a_bad_projection_is_refused_and_the_conversation_goes_on() -> None:
    def spoil(k: int, message: bytearray) -> bytearray:
        if k == 2:
            struct.pack_into("<f", message, 28, float("nan"))
        return message

    with OriginalDistributor(6, spoil) as distributor, worker(distributor.address) as receiver:
        events = read_all(receiver)
    refused = [event for event in events if isinstance(event, Refused)]
    assert [(event.seq, event.reason) for event in refused] == [(2, "not-finite")]
    assert sum(isinstance(event, Arrived) for event in events) == 5
    assert events[-1].totals.projections == 6


def test_a_wrong_sequence_ends_the_scan_with_what_has_arrived() -> None:
    def spoil(k: int, message: bytearray) -> bytearray:
        if k == 2:
            struct.pack_into("<Q", message, 0, 99)
        return message

    with OriginalDistributor(3, spoil, finish=False) as distributor, worker(distributor.address) as receiver:
        events = read_all(receiver)
    assert [type(event) for event in events] == [Arrived, Arrived, Lost]
    assert f"{distributor.address}: seq is 99" in events[-1].text


def test_a_silent_distributor_is_lost() -> None:
    with (
        OriginalDistributor(2, finish=False) as distributor,
        worker(distributor.address, stall_timeout_s=0.3) as receiver,
    ):
        events = read_all(receiver)
    assert isinstance(events[-1], Lost)
    assert "no message for" in events[-1].text
    assert "--stall-timeout SECONDS" in events[-1].text


@contextmanager
def bare(kind: int, address: str | None = None):
    """A socket that says what the test says."""
    context = zmq.Context()
    socket = context.socket(kind)
    socket.set(zmq.RCVTIMEO, 5000)
    if address is None:
        socket.bind(ANY)
    else:
        socket.connect(address)
    try:
        yield socket
    finally:
        socket.close(linger=500)
        context.term()


def test_an_absent_distributor_is_named_in_time() -> None:
    with bare(zmq.REP) as socket:
        address = socket.get_string(zmq.LAST_ENDPOINT)
        with worker(address, connect_timeout_s=0.2) as receiver, pytest.raises(PeerLostError, match=address):
            receiver.scan()


def test_something_else_than_a_distributor_is_named() -> None:
    with bare(zmq.REP) as socket:
        thread = threading.Thread(target=lambda: socket.recv() and socket.send(b"HTTP/1.1 400 Bad Request"))
        thread.start()
        with (
            worker(socket.get_string(zmq.LAST_ENDPOINT)) as receiver,
            pytest.raises(ProtocolError, match=r"is shorter|size is"),
        ):
            receiver.scan()
        thread.join()


@pytest.mark.parametrize("url", ["dist:5560", "tcp://dist", "tcp://dist:port", "udp://dist:1"])
def test_a_malformed_address_says_how_to_write_it(url) -> None:
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        worker(url)


def test_strangers_are_refused_and_do_not_disturb() -> None:
    with server() as distributor, bare(zmq.DEALER, distributor.address) as stranger:
        stranger.send(b"garbage")
        stranger.send_multipart([b"", b"garbage"])
        stranger.send_multipart([b"", bytes(2**20)])  # longer than any request: the connection is cut
        time.sleep(0.2)
        one = WorkerThread(distributor.address, 0, 1)
        distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        sent = list(projections(10))
        for projection in sent:
            stranger.send_multipart([b"", b"garbage"])
            distributor.push(projection)
        distributor.finish()
        one.join()
    np.testing.assert_array_equal(one.pixels, [projection.pixels for projection in sent])


def test_a_worker_that_breaks_the_conversation_ends_it_for_all() -> None:
    with server() as distributor, bare(zmq.REQ, distributor.address) as socket:
        socket.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 1))
        distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        socket.recv()
        socket.send(struct.pack("<QQQ", 7, 0x10, 24))
        with pytest.raises(ProtocolError, match="seq is 7, expected 2"):
            for projection in projections(100):
                distributor.push(projection)


def test_a_worker_that_asks_for_nothing_is_named() -> None:
    with server(window=2, stall_timeout_s=0.3) as distributor, bare(zmq.REQ, distributor.address) as socket:
        socket.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 1))
        distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        with pytest.raises(PeerLostError, match=r"worker 0 at .* requested nothing"):
            for projection in projections(10):
                distributor.push(projection)


def test_a_worker_that_leaves_is_named_at_once() -> None:
    with server(window=2, stall_timeout_s=60) as distributor:
        with bare(zmq.REQ, distributor.address) as socket:
            socket.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 1))
            distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        with pytest.raises(PeerLostError, match=r"worker 0 at .* disconnected before the end"):
            for projection in projections(10):
                distributor.push(projection)


def test_a_worker_that_leaves_after_the_end_is_not_waited_for() -> None:
    """The original may crash while it cleans up, before its last message has left."""
    with server(stall_timeout_s=60) as distributor:
        with bare(zmq.REQ, distributor.address) as socket:
            socket.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 1))
            distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
            socket.recv()
            socket.send(struct.pack("<QQQ", 2, 0x10, 24))
            ending = threading.Thread(target=distributor.finish)
            ending.start()
            assert socket.recv()[8] == 0
        ending.join(10)
        assert not ending.is_alive()


def test_a_stranger_that_leaves_disturbs_nobody() -> None:
    with server() as distributor:
        with bare(zmq.REQ, distributor.address) as stranger:
            stranger.send(b"hello")
            time.sleep(0.1)
        reader = WorkerThread(distributor.address, 0, 1)
        distributor.join(rows=ROWS, cols=COLS, timeout_s=5)
        with bare(zmq.REQ, distributor.address) as stranger:
            stranger.send(b"hello")
            time.sleep(0.1)
        sent = list(projections(5))
        for projection in sent:
            distributor.push(projection)
        distributor.finish()
        reader.join()
    assert len(reader.pixels) == 5


def test_a_worker_that_does_not_come_is_named_by_its_port() -> None:
    with server() as distributor, bare(zmq.REQ, distributor.address) as socket:
        socket.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 2))
        host, port = tracemq.split_address(distributor.address)
        with pytest.raises(PeerLostError, match=f"waiting for a worker at {host}:{port + 1}"):
            distributor.join(rows=ROWS, cols=COLS, timeout_s=0.3)


def test_more_workers_than_rows_is_a_configuration_error() -> None:
    with server() as distributor, bare(zmq.REQ, distributor.address) as socket:
        socket.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 9))
        with pytest.raises(ConfigError, match="start at most 7"):
            distributor.join(rows=ROWS, cols=COLS, timeout_s=5)


@pytest.mark.parametrize(("rank", "size", "said"), [(0, 2, "ranks"), (1, 3, "one of 3 workers")])
def test_workers_that_contradict_each_other_are_refused(rank, size, said) -> None:
    with server() as distributor:
        host, port = tracemq.split_address(distributor.address)
        with bare(zmq.REQ, distributor.address) as first, bare(zmq.REQ, f"{host}:{port + 1}") as second:
            first.send(struct.pack("<QQQ2I", 0, 1, 32, 0, 2))
            second.send(struct.pack("<QQQ2I", 0, 1, 32, rank, size))
            with pytest.raises(ProtocolError, match=said):
                distributor.join(rows=ROWS, cols=COLS, timeout_s=5)


def test_a_port_in_use_is_a_configuration_error() -> None:
    with server() as first, pytest.raises(ConfigError, match=first.address):
        server(listen=first.address)
