"""The data-acquisition wire of aps-mini-apps over ZeroMQ, sending end: TImage to subscribers, once they say ready."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Self

import zmq

from ministream import bounded, log
from ministream.errors import ConfigError, PeerLostError
from ministream.model import Frame, FrameKind, Scan
from ministream.transport._aps.sockets import bind, milliseconds
from ministream.transport._wire import SenderReport
from ministream.wire import timage
from ministream.wire.angles import AngleUnit
from ministream.wire.timage import ImageType

_log = log.get(__name__)

# A subscription has one byte and a topic, which is empty on this wire; the ready message is empty too.
_LARGEST_REQUEST_BYTES = 256

SUBSCRIPTION_S = 0.5
"""How long a subscription may take after its subscriber said ready on another connection."""


class DaqSender:
    """Publishes one scan as TImage, as the native sender sends one to our receiver.

    It waits for `subscribers` subscriptions, or with `sync_listen` for as many ready messages there, as
    the programs of aps-mini-apps do: their distributor subscribes once, but says ready once for each of its workers.
    A subscriber that lags by more than `queue` images makes `send` wait, but at most `stall_timeout_s`: then the
    scan continues without waiting for any, unless it is the only one.
    `pixel_dtype` converts the pixels; None sends them as they are. `drain_s` is how long `finish` waits for the
    subscribers to leave, where data in a tunnel that ends with this job would be lost.
    """

    def __init__(
        self,
        listen: str,
        scan: Scan,
        *,
        sync_listen: str | None,
        subscribers: int,
        queue: int,
        pixel_dtype: str | None,
        angle_unit: AngleUnit,
        peer_timeout_s: float,
        stall_timeout_s: float,
        drain_s: float = 0.0,
    ) -> None:
        self._center = scan.axis_or_middle + 0.5
        # The original numbers flats, darks and projections as one dataset.
        self._first_number = {
            FrameKind.FLAT: 0,
            FrameKind.DARK: scan.flats,
            FrameKind.PROJECTION: scan.flats + scan.darks,
        }
        self._wanted, self._subscribers, self._ready = subscribers, 0, 0
        self._pixel_dtype, self._angle_unit = pixel_dtype, angle_unit
        self._peer_timeout_s, self._stall_timeout_s, self._drain_s = peer_timeout_s, stall_timeout_s, drain_s
        self._projections = self._dropped = self._bytes = 0
        self._started_s: float | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.XPUB_VERBOSER, 1)
        self._socket.set(zmq.XPUB_NODROP, 1)
        self._socket.set(zmq.SNDHWM, queue)
        self._socket.set(zmq.SNDTIMEO, milliseconds(stall_timeout_s))
        self._socket.set(zmq.LINGER, milliseconds(stall_timeout_s))
        self._socket.set(zmq.MAXMSGSIZE, _LARGEST_REQUEST_BYTES)
        self._sync = None if sync_listen is None else self._context.socket(zmq.REP)
        if self._sync is not None:
            self._sync.set(zmq.MAXMSGSIZE, _LARGEST_REQUEST_BYTES)
        try:
            self.address = bind(self._socket, listen)
            self.sync_address = None if self._sync is None else bind(self._sync, str(sync_listen))
        except ConfigError:
            self.close()
            raise

    @property
    def addresses(self) -> Sequence[str]:
        """The publisher's address, and that of the sync socket where there is one."""
        return [self.address] if self.sync_address is None else [self.address, self.sync_address]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the ports; queued messages to subscribers that still read get time to leave."""
        if self._sync is not None:
            self._sync.close(linger=1000)
        self._socket.close()
        bounded.close("detector's publisher", self._context.term, linger_s=self._stall_timeout_s)

    def send(self, frame: Frame, again: Callable[[], Frame] | None = None) -> None:
        """Publish one frame; the first one waits for the subscribers.

        Raises PeerLostError when they stay away, leave, or do not read for longer than the time allowed.
        """
        if self._started_s is None:
            self._wait_for_subscribers()
            self._started_s = time.monotonic()
        number = self._first_number[frame.kind] + frame.index
        message = timage.encode(
            frame.pixels,
            image_type=_image_type(frame),
            seq=number,
            rotation=frame.angle_rad if self._angle_unit == "radians" else math.degrees(frame.angle_rad),
            center=self._center,
            unique_id=number,
            dtype=self._pixel_dtype,
        )
        self._hand_over(message)
        self._projections += frame.kind is FrameKind.PROJECTION
        self._bytes += len(message)

    def omit(self, indices: Sequence[int], *, reason: str, at_s: float) -> None:
        """Count projections that are left out on purpose; to subscribers they are missing numbers."""
        self._dropped += len(indices)

    def finish(self, dropped: int = 0) -> SenderReport:
        """Publish the end. This wire has no confirmation, but a subscriber that has the end disconnects.

        It cannot carry the number of `dropped` projections either: that is in this end's report alone.
        """
        self._hand_over(timage.END_OF_DATA)
        deadline = time.monotonic() + self._drain_s
        while self._subscribers > 0 and self._socket.poll(milliseconds(deadline - time.monotonic())):
            self._hear()
        if self._drain_s and self._subscribers:
            _log.warning(
                "%s: %d subscribers are still connected %g s after the end",
                self.address,
                self._subscribers,
                self._drain_s,
            )
        self._dropped += dropped
        return self.report

    @property
    def report(self) -> SenderReport:
        """What has been sent so far."""
        seconds = time.monotonic() - (self._started_s or time.monotonic())
        return SenderReport(projections=self._projections, bytes=self._bytes, seconds=seconds, dropped=self._dropped)

    def _wait_for_subscribers(self) -> None:
        poller = zmq.Poller()
        for socket in filter(None, (self._socket, self._sync)):
            poller.register(socket, zmq.POLLIN)
        deadline = time.monotonic() + self._peer_timeout_s
        while not self._awaited():
            if not poller.poll(milliseconds(deadline - time.monotonic())):
                came = self._subscribers if self._sync is None else self._ready
                raise PeerLostError(
                    f"timed out after {self._peer_timeout_s:g} s waiting for subscribers at {self.address}: "
                    f"{came} of {self._wanted} subscribers came"
                )
            self._hear()
        deadline = time.monotonic() + SUBSCRIPTION_S
        while self._subscribers < self._wanted and self._socket.poll(milliseconds(deadline - time.monotonic())):
            self._hear()

    def _awaited(self) -> bool:
        """Enough subscribers are ready; their subscriptions may still be in transit."""
        if self._sync is None:
            return self._subscribers >= self._wanted
        return self._ready >= self._wanted and self._subscribers > 0

    def _hear(self) -> None:
        """Count subscriptions; answer every ready message, late ones too: the sender waits for the answer."""
        while self._socket.poll(0):
            self._subscribers += 1 if self._socket.recv()[:1] == b"\x01" else -1
        while self._sync is not None and self._sync.poll(0):
            self._sync.recv()
            self._sync.send(b"")
            self._ready += 1

    def _hand_over(self, message: bytes | memoryview) -> None:
        self._hear()
        if self._subscribers < 1:
            raise PeerLostError(f"{self.address}: the last subscriber disconnected before the end of the scan")
        try:
            self._socket.send(message, copy=False)
        except zmq.Again:
            if self._subscribers < 2:
                text = f"{self.address}: the subscriber read nothing for {self._stall_timeout_s:g} s"
                raise PeerLostError(text) from None
            self._leave_behind()
            self._socket.send(message, copy=False)

    def _leave_behind(self) -> None:
        """Continue for the subscribers that read; ZeroMQ does not report which one does not."""
        _log.warning(
            "%s: one of %d subscribers read nothing for %g s: from now on images that a subscriber cannot take are "
            "dropped for it alone",
            *(self.address, self._subscribers, self._stall_timeout_s),
        )
        self._socket.set(zmq.XPUB_NODROP, 0)


def _image_type(frame: Frame) -> ImageType:
    match frame.kind:
        case FrameKind.PROJECTION:
            return ImageType.PROJECTION
        case FrameKind.FLAT:
            return ImageType.WHITE if frame.index else ImageType.WHITE_RESET
        case FrameKind.DARK:
            return ImageType.DARK if frame.index else ImageType.DARK_RESET
