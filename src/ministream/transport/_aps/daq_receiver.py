"""The receiver of aps-mini-apps' data-acquisition wire over ZeroMQ: TImage from a publisher, the ready handshake."""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Iterable
from typing import Self

import numpy as np
import zmq

from ministream import bounded, log
from ministream.errors import ConfigError, FrameError, PeerLostError
from ministream.model import Frame, FrameKind, Scan
from ministream.transport._aps.sockets import connect, milliseconds, silence
from ministream.transport._wire import Event, ReceiverReport
from ministream.wire import timage
from ministream.wire.angles import AngleUnit
from ministream.wire.daq import DaqStream
from ministream.wire.native import Totals
from ministream.wire.session import Arrived, Ended, Lost, Refused

_log = log.get(__name__)

RECEIVE_QUEUE = 16
"""Messages that ZeroMQ holds for a receiver; the rest stays with the sender."""


class DaqReceiver:
    """Reads one scan from a program that publishes TImage, as the native receiver reads one from our producer.

    `url` is the publisher; `sync_url`, where there is one, its REP socket, which counts the subscribers it waits for:
    this one counts as `ready` of them, for a publisher that expects as many as there are reconstruction workers.
    A publisher does not wait for a slow subscriber: what it drops shows as missing numbers.
    """

    def __init__(
        self,
        url: str,
        *,
        sync_url: str | None,
        ready: int = 1,
        pixel_dtype: str,
        angle_unit: AngleUnit,
        hold_bytes: int,
        needs_flats: bool,
        connect_timeout_s: float,
        stall_timeout_s: float,
    ) -> None:
        self._url, self._sync_url, self._ready = url, sync_url, ready
        self._dtype = np.dtype(pixel_dtype)
        self._connect_timeout_s, self._stall_timeout_s = connect_timeout_s, stall_timeout_s
        self._stream = DaqStream(
            pixel_dtype=pixel_dtype, angle_unit=angle_unit, hold_bytes=hold_bytes, needs_flats=needs_flats, peer=url
        )
        self._events: deque[Event] = deque()
        self._counts = dict.fromkeys(FrameKind, 0)
        self._refused = self._bytes = 0
        self._over = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
        self._socket.set(zmq.MAXMSGSIZE, timage.LARGEST_BYTES)
        self._socket.subscribe(b"")
        self._heard_s = math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect from the publisher; repeatable."""
        self._socket.close()
        bounded.close(self._url, self._context.term)

    def scan(self) -> Scan:
        """Connect, say that this end is ready, and wait for the first image; the counts are not known on this wire.

        Raises PeerLostError when publisher or first image stay away longer than the time allowed, ConfigError when
        the pixels are not of the dtype that the user named.
        """
        self._connect()
        if self._sync_url is not None:
            self._synchronize(self._sync_url)
        deadline = time.monotonic() + self._connect_timeout_s
        while self._stream.shape is None:
            self._read(deadline - time.monotonic())
            last = self._events[-1] if self._events else None
            if isinstance(last, Refused) and last.reason == "dtype":
                raise ConfigError(last.text)
            if isinstance(last, Ended):
                raise PeerLostError(f"{self._url}: the publisher ended the scan before its first image. Start it again")
            if self._over or time.monotonic() > deadline:
                raise PeerLostError(
                    f"{self._url}: timed out after {self._connect_timeout_s:g} s waiting for the first image"
                )
        rows, cols = self._stream.shape
        return Scan(
            scan_id=f"daq-{uuid.uuid4().hex}",
            rows=rows,
            cols=cols,
            projections=0,
            flats=0,
            darks=0,
            dtype=self._dtype.str,
            axis_col=self._stream.axis_col,
        )

    def next(self, timeout_s: float) -> Event | None:
        """The next event, waiting at most `timeout_s`; None when there is none yet."""
        deadline = time.monotonic() + timeout_s
        remaining_s = timeout_s
        while not self._events and not self._over and remaining_s >= 0:
            self._read(remaining_s)
            remaining_s = deadline - time.monotonic()
        return self._events.popleft() if self._events else None

    def ack(self, seq: int) -> None:
        """Nothing to send: this wire has no acknowledgement."""

    def save(self, seq: int) -> None:
        """Nothing to send: a publisher repeats nothing."""

    def conclude(self, *, written: bool, complete: bool, text: str = "") -> None:
        """Nothing to send: a publisher does not ask."""

    @property
    def report(self) -> ReceiverReport:
        """What has arrived so far."""
        frames = sum(self._counts.values())
        return ReceiverReport(received=frames, refused=self._refused, acked=frames, bytes=self._bytes, dialled=1)

    def _connect(self) -> None:
        """Connect, and wait until the subscription is sent: what is published before that is lost."""
        monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            connect(self._socket, self._url)
            if not monitor.poll(milliseconds(self._connect_timeout_s)):
                raise PeerLostError(
                    f"{self._url}: timed out after {self._connect_timeout_s:g} s waiting for the publisher"
                )
        finally:
            self._socket.disable_monitor()
            monitor.close()

    def _synchronize(self, url: str) -> None:
        """Say ready as often as is expected; a publisher that expects fewer starts early and stops answering."""
        with self._context.socket(zmq.REQ) as socket:
            socket.set(zmq.LINGER, 0)
            connect(socket, url)
            poller = zmq.Poller()
            for one in (socket, self._socket):
                poller.register(one, zmq.POLLIN)
            for _ in range(self._ready):
                socket.send(b"")
                heard = dict(poller.poll(milliseconds(self._connect_timeout_s)))
                if not heard:
                    raise PeerLostError(
                        f"{url}: timed out after {self._connect_timeout_s:g} s waiting for the publisher's answer"
                    )
                if socket not in heard:
                    break
                socket.recv()

    def _read(self, timeout_s: float) -> None:
        """Take one message, if one arrives in time, and queue the resulting events."""
        stalls_in_s = self._heard_s + self._stall_timeout_s - time.monotonic()
        if not self._socket.poll(milliseconds(min(timeout_s, stalls_in_s))):
            silence_s = time.monotonic() - self._heard_s
            if silence_s >= self._stall_timeout_s:
                self._end(Lost(text=silence(self._url, silence_s, "no end_data")))
            return
        self._heard_s = time.monotonic()
        parts = self._socket.recv_multipart(copy=False)
        message = parts[0].buffer
        self._bytes += len(message)
        if message == timage.END_OF_DATA:
            self._end(None)
            return
        try:
            frames = self._stream.receive(message, time.time())
        except FrameError as error:
            self._refused += 1
            self._events.append(Refused(seq=self._seq, reason=error.reason, text=str(error)))
        else:
            self._pass_on(frames)

    def _pass_on(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._events.append(Arrived(seq=self._seq, frame=frame))
            self._counts[frame.kind] += 1

    def _end(self, loss: Lost | None) -> None:
        self._over = True
        self._socket.close()  # the publisher may wait for this: the wire has no other confirmation
        self._pass_on(self._stream.end())
        if self._stream.missing:
            _log.warning("%s: %d sequence numbers are missing", self._url, self._stream.missing)
        # The kind of a missing image is not known; the loss must be reported all the same.
        projections = self._counts[FrameKind.PROJECTION] + self._refused + self._stream.missing
        totals = Totals(darks=self._counts[FrameKind.DARK], flats=self._counts[FrameKind.FLAT], projections=projections)
        self._events.append(loss or Ended(totals=totals))

    @property
    def _seq(self) -> int:
        return sum(self._counts.values()) + self._refused
