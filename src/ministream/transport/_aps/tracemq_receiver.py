"""The distributor wire of aps-mini-apps over ZeroMQ, receiving end, in place of a `sirt_stream` worker."""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from typing import Self

import zmq

from ministream import bounded
from ministream.errors import FrameError, PeerLostError, ProtocolError
from ministream.model import Frame, FrameKind, Scan, Slab
from ministream.transport._aps.sockets import connect, milliseconds, silence
from ministream.transport._wire import Event, ReceiverReport
from ministream.wire import tracemq
from ministream.wire.angles import AngleCheck, AngleUnit
from ministream.wire.native import Totals
from ministream.wire.session import Arrived, Ended, Lost, Refused
from ministream.wire.tracemq import Assigned, Finished, Projection, WorkerSession, split_address


class TraceMqReceiver:
    """Worker `rank` of `size`, as the native receiver reads one scan; alone, it gets every detector row.

    `url` is the distributor's first port; worker r talks to the one r higher. The pixels are what the distributor
    made of them, usually line integrals. One projection is in transit while the previous one is used.
    """

    def __init__(
        self,
        url: str,
        *,
        rank: int,
        size: int,
        angle_unit: AngleUnit,
        connect_timeout_s: float,
        stall_timeout_s: float,
    ) -> None:
        host, base = split_address(url)
        self._url = f"{host}:{base + rank}"
        self._connect_timeout_s, self._stall_timeout_s = connect_timeout_s, stall_timeout_s
        self._worker = WorkerSession(rank=rank, size=size, peer=self._url)
        self._angles = AngleCheck(angle_unit, self._url)
        self._events: deque[Event] = deque()
        self._axis_col: float | None = None
        self._arrived = self._refused = self._bytes = 0
        self._over = False
        self._heard_s = math.inf
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.set(zmq.LINGER, 1000)
        self._socket.set(zmq.MAXMSGSIZE, tracemq.LARGEST_BYTES + 64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect from the distributor; repeatable."""
        self._socket.close()
        bounded.close(self._url, self._context.term, linger_s=1.0)

    @property
    def slab(self) -> Slab:
        """The detector rows that the distributor gave this worker."""
        assert self._worker.assigned is not None
        return self._worker.assigned.slab

    def scan(self) -> Scan:
        """Introduce this worker and wait for its rows and the first projection; `rows` are those of all workers.

        Raises PeerLostError when the distributor stays away longer than the time allowed, ProtocolError when it
        speaks another protocol.
        """
        connect(self._socket, self._url)
        deadline = time.monotonic() + self._connect_timeout_s
        self._socket.send(self._worker.hello())
        while not self._events:
            self._read(deadline - time.monotonic())
            if time.monotonic() > deadline:
                what = "introduction" if self._worker.assigned is None else "request for a projection"
                raise PeerLostError(
                    f"{self._url}: timed out after {self._connect_timeout_s:g} s waiting for the answer to the {what}"
                )
        if isinstance(self._events[0], Lost):
            raise ProtocolError(self._events[0].text)
        assert self._worker.assigned is not None
        return Scan(
            scan_id=f"tracemq-{uuid.uuid4().hex}",
            rows=self._worker.assigned.rows,
            cols=self._worker.assigned.cols,
            projections=0,
            flats=0,
            darks=0,
            dtype="<f4",
            axis_col=self._axis_col,
        )

    def next(self, timeout_s: float) -> Event | None:
        """The next event, waiting at most `timeout_s`; None when there is none yet."""
        if not self._events and not self._over:
            self._read(timeout_s)
        return self._events.popleft() if self._events else None

    def ack(self, seq: int) -> None:
        """Nothing to send: the request for the next projection is this wire's acknowledgement."""

    def save(self, seq: int) -> None:
        """Nothing to send: a distributor repeats nothing."""

    def conclude(self, *, written: bool, complete: bool, text: str = "") -> None:
        """Nothing to send: a distributor does not ask."""

    @property
    def report(self) -> ReceiverReport:
        """What has arrived so far."""
        return ReceiverReport(
            received=self._arrived, refused=self._refused, acked=self._arrived, bytes=self._bytes, dialled=1
        )

    def _read(self, timeout_s: float) -> None:
        """Take one message, if one arrives in time, answer it, and queue the resulting events."""
        stalls_in_s = self._heard_s + self._stall_timeout_s - time.monotonic()
        if not self._socket.poll(milliseconds(min(timeout_s, stalls_in_s))):
            silence_s = time.monotonic() - self._heard_s
            if silence_s >= self._stall_timeout_s:
                self._lose(silence(self._url, silence_s, "the scan is not finished"))
            return
        self._heard_s = time.monotonic()
        message = self._socket.recv(copy=False).buffer
        self._bytes += len(message)
        try:
            event = self._worker.receive(message)
        except FrameError as error:
            self._events.append(Refused(seq=self._seq, reason=error.reason, text=str(error)))
            self._refused += 1
        except ProtocolError as error:
            self._lose(str(error))
            return
        else:
            self._take(event)
        self._socket.send(self._worker.answer())

    def _lose(self, text: str) -> None:
        self._over = True
        self._events.append(Lost(text=text))

    def _take(self, event: Assigned | Projection | Finished) -> None:
        match event:
            case Projection(theta=theta, center=center, pixels=pixels):
                if self._axis_col is None and center > 0:
                    self._axis_col = center - 0.5
                frame = Frame(
                    kind=FrameKind.PROJECTION,
                    index=self._seq,
                    angle_rad=self._angles.radians(theta),
                    pixels=pixels,
                    acquired_s=time.time(),
                )
                self._events.append(Arrived(seq=self._seq, frame=frame))
                self._arrived += 1
            case Finished():
                self._over = True
                self._angles.check()
                self._events.append(Ended(totals=Totals(projections=self._seq)))

    @property
    def _seq(self) -> int:
        return self._arrived + self._refused
