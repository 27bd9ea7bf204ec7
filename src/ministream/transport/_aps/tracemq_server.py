"""The distributor wire of aps-mini-apps over ZeroMQ, served in the place of its distributor."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

import msgspec
import zmq

from ministream import log, partition
from ministream.errors import ConfigError, MinistreamError, PeerLostError, ProtocolError
from ministream.model import Slab
from ministream.transport._aps.sockets import bind, milliseconds
from ministream.wire.tracemq import Assigned, Finished, Joined, Projection, Requested, Server, split_address

_log = log.get(__name__)

_LARGEST_REQUEST = 1024
"""Bound in bytes on what a worker may send; the original sends 40."""


@dataclass(kw_only=True, eq=False)
class _Served:
    """One worker's place: its socket, and the projections that it has not asked for yet."""

    socket: zmq.Socket[bytes]
    name: str
    server: Server
    identity: bytes | None = None
    rank: int = 0
    slab: Slab = field(default_factory=lambda: Slab(0, 0))
    queue: deque[Projection] = field(default_factory=deque)
    waiting: bool = False
    done: bool = False
    heard_s: float = 0.0

    def send(self, message: memoryview) -> None:
        assert self.identity is not None
        self.socket.send_multipart([self.identity, b"", message], copy=False)


class TraceMqServer:
    """Deals projections by detector row to any number of workers, each at its own pace.

    A worker may lag by `window` projections before `push` waits for it, and with it the other workers. The first
    worker, on the port of `listen`, says how many there are; worker r comes to the port r higher.
    """

    def __init__(self, listen: str, *, window: int, stall_timeout_s: float) -> None:
        self._window = window
        self._stall_timeout_s = stall_timeout_s
        self._context = zmq.Context()
        self._workers: list[_Served] = []
        self._changed = threading.Condition()
        self._ending = False
        self._closing = False
        self._failure: MinistreamError | None = None
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        try:
            self.address = self._listen(listen)
        except ConfigError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the workers and give the ports back; after `finish` nobody misses anything."""
        with self._changed:
            self._closing = True
        if self._thread is not None:
            self._wake()
            self._thread.join()
            self._thread = None
        for socket in (self._wake_in, self._wake_out, *(worker.socket for worker in self._workers)):
            socket.close(linger=1000)
        self._context.term()

    def join(self, *, rows: int, cols: int, timeout_s: float) -> int:
        """Wait for the workers, give them their rows of `rows` × `cols` pixels, and begin to serve; how many came.

        Raises PeerLostError when they stay away, ConfigError when there are more of them than rows.
        """
        deadline = time.monotonic() + timeout_s
        first = self._workers[0]
        size = self._introduced(first, deadline).size
        slabs = partition.slabs(rows, size)
        host, base = split_address(self.address)
        for offset in range(1, size):
            self._listen(f"{host}:{base + offset}")
        for worker in self._workers[1:]:
            claimed = self._introduced(worker, deadline)
            if claimed.size != size:
                raise ProtocolError(
                    f"{worker.name} says that it is one of {claimed.size} workers, {first.name} of {size}"
                )
        if sorted(worker.rank for worker in self._workers) != list(range(size)):
            raise ProtocolError(f"the workers claim the ranks {[worker.rank for worker in self._workers]}")
        for worker in self._workers:
            worker.slab = slabs[worker.rank]
            worker.send(worker.server.assign(Assigned(rows=rows, cols=cols, slab=worker.slab)))
            worker.heard_s = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="tracemq", daemon=True)
        self._thread.start()
        return size

    def push(self, projection: Projection) -> None:
        """Queue one projection [rows, cols] for every worker; its pixels must stay as they are.

        Raises PeerLostError when a worker that lags by the whole window asks for nothing for too long.
        """
        with self._changed:
            while not self._failure and any(len(worker.queue) >= self._window for worker in self._workers):
                self._wait_for_progress()
            self._raise_failure()
            for worker in self._workers:
                worker.queue.append(projection)
        self._wake()

    def finish(self) -> None:
        """Wait until every worker has had everything and has confirmed the end.

        Raises PeerLostError when one asks for nothing for too long.
        """
        with self._changed:
            self._ending = True
            self._wake()
            while not self._failure and not all(worker.done for worker in self._workers):
                self._wait_for_progress()
            self._raise_failure()

    def _listen(self, address: str) -> str:
        socket = self._context.socket(zmq.ROUTER)
        socket.set(zmq.MAXMSGSIZE, _LARGEST_REQUEST)
        socket.set(zmq.LINGER, 1000)
        try:
            endpoint = bind(socket, address)
        except ConfigError:
            socket.close()
            raise
        self._workers.append(_Served(socket=socket, name=endpoint, server=Server(peer=f"the worker at {endpoint}")))
        return endpoint

    def _introduced(self, worker: _Served, deadline: float) -> Joined:
        """Wait for a worker's first message; anything else that comes to its port is refused and forgotten."""
        while worker.socket.poll(milliseconds(deadline - time.monotonic())):
            identity, message = _request(worker)
            try:
                event = worker.server.receive(message)
            except ProtocolError as error:
                _log.warning("refused: %s", error)
                continue
            assert isinstance(event, Joined)
            worker.identity, worker.rank = identity, event.rank
            _log.info("worker %d of %d came to %s", event.rank, event.size, worker.name)
            return event
        raise PeerLostError(f"{worker.name}: no worker came in time")

    def _wake(self) -> None:
        with contextlib.suppress(zmq.Again):  # so many calls wait to be heard that one more says nothing new
            self._wake_out.send(b"", zmq.DONTWAIT)

    def _wait_for_progress(self) -> None:
        """Let the serving thread go on; fail when the worker that holds everything up asks for nothing for too long."""
        self._changed.wait(min(1.0, self._stall_timeout_s))
        late = [worker for worker in self._workers if not worker.done and not worker.waiting]
        for worker in late:
            silence_s = time.monotonic() - worker.heard_s
            if silence_s > self._stall_timeout_s:
                raise PeerLostError(
                    f"worker {worker.rank} at {worker.name} has asked for nothing for {silence_s:.0f} s"
                )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        """The serving thread: answer every request as soon as there is something to answer it with."""
        poller = zmq.Poller()
        sockets = {worker.socket: worker for worker in self._workers}
        for socket in (self._wake_in, *sockets):
            poller.register(socket, zmq.POLLIN)
        try:
            while not (self._closing or all(worker.done for worker in self._workers)):
                for socket, _ in poller.poll():
                    if socket is self._wake_in:
                        self._wake_in.recv()
                    else:
                        self._hear(sockets[socket])
                for worker in self._workers:
                    self._answer(worker)
        except MinistreamError as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _hear(self, worker: _Served) -> None:
        identity, message = _request(worker)
        if identity != worker.identity:
            _log.warning("refused: a stranger's message at %s, where worker %d is served", worker.name, worker.rank)
            return
        event = worker.server.receive(message)
        with self._changed:
            worker.heard_s = time.monotonic()
            worker.waiting = isinstance(event, Requested)
            worker.done = isinstance(event, Finished)
            self._changed.notify_all()

    def _answer(self, worker: _Served) -> None:
        with self._changed:
            if not worker.waiting or not (worker.queue or self._ending):
                return
            projection = worker.queue.popleft() if worker.queue else None
            worker.waiting = False
            worker.heard_s = time.monotonic()
            self._changed.notify_all()
        if projection is None:
            worker.send(worker.server.finish())
            return
        rows = msgspec.structs.replace(projection, pixels=projection.pixels[worker.slab.slice])
        worker.send(worker.server.projection(rows))


def _request(worker: _Served) -> tuple[bytes, bytes]:
    """A worker's identity and message; the message is empty where the framing of a REQ socket is not kept."""
    identity, *parts = worker.socket.recv_multipart()
    return identity, parts[1] if len(parts) == 2 and not parts[0] else b""
