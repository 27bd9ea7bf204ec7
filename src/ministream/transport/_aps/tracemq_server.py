"""The distributor wire of aps-mini-apps over ZeroMQ, sending end, in place of its distributor."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Self

import msgspec
import zmq

from ministream import bounded, log, partition
from ministream.errors import ConfigError, MinistreamError, PeerLostError, ProtocolError
from ministream.transport._aps.served import Served
from ministream.transport._aps.sockets import milliseconds
from ministream.wire.tracemq import Assigned, Finished, Projection, Requested, WorkerJoined, split_address

_log = log.get(__name__)


class TraceMqServer:
    """Distributes projections by detector row to any number of workers, each at its own pace.

    A worker may lag by `window` projections before `push` waits for it, and with it the other workers. The first
    worker, on the port of `listen`, says how many there are; worker r uses the port r higher.
    """

    def __init__(self, listen: str, *, window: int, stall_timeout_s: float) -> None:
        self._window = window
        self._stall_timeout_s = stall_timeout_s
        self._context = zmq.Context()
        self._workers: list[Served] = []
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
        """Disconnect the workers and release the ports; after `finish` they have everything."""
        with self._changed:
            self._closing = True
        if self._thread is not None:
            self._wake()
            self._thread.join()
            self._thread = None
        for worker in self._workers:
            worker.close()
        for socket in (self._wake_in, self._wake_out):
            socket.close(linger=1000)
        bounded.close("distributor", self._context.term, linger_s=1.0)

    def join(self, *, rows: int, cols: int, timeout_s: float) -> int:
        """Wait for the workers, give them their rows of `rows` × `cols` pixels, and serve; returns their number.

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
                raise ProtocolError(f"{worker.name} claims to be one of {claimed.size} workers, {first.name} of {size}")
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
        worker = Served.listening(self._context, address)
        self._workers.append(worker)
        return worker.name

    def _introduced(self, worker: Served, deadline: float) -> WorkerJoined:
        """Wait for a worker's first message; any other message at its port is rejected."""
        while worker.socket.poll(milliseconds(deadline - time.monotonic())):
            identity, message, connection = worker.request()
            try:
                event = worker.server.receive(message)
            except ProtocolError as error:
                _log.warning("message rejected: %s", error)
                continue
            assert isinstance(event, WorkerJoined)
            worker.introduced(identity, connection, event.rank)
            _log.info("worker %d of %d connected to %s", event.rank, event.size, worker.name)
            return event
        raise PeerLostError(f"timed out waiting for a worker at {worker.name}")

    def _wake(self) -> None:
        with contextlib.suppress(zmq.Again):  # many wake-ups are pending; one more adds nothing
            self._wake_out.send(b"", zmq.DONTWAIT)

    def _wait_for_progress(self) -> None:
        """Wait for the serving thread; fail when the worker that blocks the others requests nothing for too long."""
        self._changed.wait(min(1.0, self._stall_timeout_s))
        late = [worker for worker in self._workers if not worker.done and not worker.waiting]
        for worker in late:
            silence_s = time.monotonic() - worker.heard_s
            if silence_s > self._stall_timeout_s:
                raise PeerLostError(
                    f"worker {worker.rank} at {worker.name} has requested nothing for {silence_s:.0f} s"
                )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        """The serving thread: answer every request as soon as its projection is available."""
        poller = zmq.Poller()
        sockets = {worker.socket: worker for worker in self._workers}
        closed = {worker.closed: worker for worker in self._workers}
        for socket in (self._wake_in, *sockets, *closed):
            poller.register(socket, zmq.POLLIN)
        try:
            while not (self._closing or all(worker.done for worker in self._workers)):
                for socket, _ in poller.poll():
                    if socket is self._wake_in:
                        self._wake_in.recv()
                    elif socket in sockets:
                        self._hear(sockets[socket])
                    else:
                        self._part_from(closed[socket])
                for worker in self._workers:
                    self._answer(worker)
        except MinistreamError as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _hear(self, worker: Served) -> None:
        if not worker.socket.poll(0):
            return  # read already, when its connection was closed
        identity, message, _ = worker.request()
        if identity != worker.identity:
            _log.warning("message rejected at %s: its sender is not worker %d", worker.name, worker.rank)
            return
        event = worker.server.receive(message)
        with self._changed:
            worker.heard_s = time.monotonic()
            worker.waiting = isinstance(event, Requested)
            worker.done = isinstance(event, Finished)
            self._changed.notify_all()

    def _part_from(self, worker: Served) -> None:
        """A connection was closed: if it was the worker's, what it sent before still counts."""
        if not worker.left():
            return
        while worker.socket.poll(0):
            self._hear(worker)
        with self._changed:
            if not (worker.done or worker.finishing):
                raise PeerLostError(f"worker {worker.rank} at {worker.name} disconnected before the end of the scan")
            if not worker.done:
                _log.warning(
                    "worker %d at %s received everything and disconnected without confirming it",
                    worker.rank,
                    worker.name,
                )
            worker.done = True
            self._changed.notify_all()

    def _answer(self, worker: Served) -> None:
        with self._changed:
            if not worker.waiting or not (worker.queue or self._ending):
                return
            projection = worker.queue.popleft() if worker.queue else None
            worker.waiting, worker.finishing = False, projection is None
            worker.heard_s = time.monotonic()
            self._changed.notify_all()
        if projection is None:
            worker.send(worker.server.finish())
            return
        rows = msgspec.structs.replace(projection, pixels=projection.pixels[worker.slab.slice])
        worker.send(worker.server.projection(rows))
