"""The producer's driver of the native wire: gives `wire.session.SenderBands` a socket, a thread and a clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from ministream import log
from ministream.errors import PeerError, PeerLostError
from ministream.model import CurveKeys, Frame, Scan
from ministream.transport._channels import Part, listen
from ministream.transport._native.driver import Driver
from ministream.transport._wire import SenderReport
from ministream.wire.frames import check, pack
from ministream.wire.native import MAX_HEADER_BYTES, MAX_OMITTED, Omission, Totals
from ministream.wire.session import Interrupted, Joined, Patience, SenderBands, TurnedAway

_LOG = log.get(__name__)

# How long the last messages may take to go out when the stream is closed.
_LINGER_S = 2.0


class FrameSender(Driver):
    """Listens at `url` and streams one scan to one receiver, which may connect late and reconnect; or to several
    that share its rows, once all of them are connected.

    A thread owns the socket: it answers the receiver also while the source is slow. Frames are kept in
    memory, without a copy, until the receiver has acknowledged them; the receiver's credit and `hold_bytes` bound how
    many (at least two). Beyond that they are read again, where `send` says how; otherwise a receiver whose job is
    restarted may not get them again, which is logged. One thread at a time may call `send`, `omit`, `finish`, `abort`
    and `close`.

    The receiver counts as lost when it has not connected within `peer_timeout_s`, or has been away for
    `outage_timeout_s`. After `silent_timeout_s` without a message from it another receiver may take its place. Once it
    is lost, or has left finally, every call raises PeerLostError.

    With `keys` the stream is encrypted, and only receivers whose keys they list are served.

    Raises ConfigError when the address cannot be bound, InputError for a scan that no receiver would accept.
    """

    def __init__(
        self,
        url: str,
        scan: Scan,
        *,
        checksum: bool = True,
        peer_timeout_s: float = 120.0,
        outage_timeout_s: float = 600.0,
        silent_timeout_s: float = 5.0,
        codec: str = "none",
        hold_bytes: int = 2**30,
        heartbeat_s: float = 1.0,
        keys: CurveKeys | None = None,
    ) -> None:
        super().__init__("frame sender", url)
        self._checksum, self._forgot = checksum, False
        self._session = SenderBands(
            scan,
            patience=Patience(
                first_contact_s=peer_timeout_s,
                outage_s=outage_timeout_s,
                silence_s=silent_timeout_s,
                heartbeat_s=heartbeat_s,
            ),
            now=time.monotonic(),
            codec=codec,
            hold_bytes=hold_bytes,
        )
        self._started_at = 0.0
        self._blocked_s = 0.0
        self._told: set[str] = set()
        self._listener = listen(url, max_message_bytes=MAX_HEADER_BYTES, keys=keys)
        self._url = self._listener.address
        self._thread.start()

    @property
    def address(self) -> str:
        """The URL to connect to, with the real port."""
        return self._url

    @property
    def addresses(self) -> Sequence[str]:
        """The one address of this wire."""
        return [self._url]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abort(f"the producer failed: {str(error) or type(error).__name__}")

    def send(self, frame: Frame, again: Callable[[], Frame] | None = None) -> None:
        """Send a frame; wait for credit, and for a receiver that is away. The pixels must not change afterwards.

        `again` reads the same frame once more, from any thread: it need not stay in memory.

        Raises FrameError when the frame is not of the scan's shape and dtype, PeerError when the receiver is lost.
        """
        check(frame, self._session.info)
        with self._changed:
            self._changed.wait_for(lambda: self._session.complete or self._over)
            self._raise_if_over()
            bands = self._session.bands
        packed = [pack(frame, band.info, checksum=self._checksum) for band in bands]
        with self._changed:
            asked_at = time.monotonic()
            self._changed.wait_for(lambda: self._session.room or self._over)
            self._raise_if_over()
            if bands[0].totals.frames:
                self._blocked_s += time.monotonic() - asked_at
            else:
                self._started_at = time.monotonic()
            self._session.submit(packed, None if again is None else lambda info: pack(again(), info, checksum=False)[1])
            self._wake()
        self._warn_if_forgetful()

    def omit(self, indices: Sequence[int], *, reason: str, at_s: float) -> None:
        """Tell the receiver which projections are left out on purpose; wait for credit as `send` does.

        Raises PeerError when the receiver is lost.
        """
        for first in range(0, len(indices), MAX_OMITTED):
            some = tuple(indices[first : first + MAX_OMITTED])
            with self._changed:
                self._changed.wait_for(lambda: self._session.room or self._over)
                self._raise_if_over()
                self._session.omit(Omission(seq=0, indices=some, reason=reason, at_s=at_s))
                self._wake()

    def finish(self, dropped: int = 0) -> SenderReport:
        """Say that this was all, and that `dropped` projections never left the source; wait until the receiver has
        used everything and reported the outcome.

        Raises PeerError when the receiver is lost before that.
        """
        with self._changed:
            self._raise_if_over()
            self._session.end(dropped)
            self._wake()
            self._changed.wait_for(lambda: self._session.done or self._over)
            if not self._session.done:
                self._raise_if_over()
        return self.report

    @property
    def report(self) -> SenderReport:
        """State of the stream."""
        with self._changed:
            bands = self._session.bands
            totals = bands[0].totals if bands else Totals()
            acked = min((band.consumed for band in bands), default=0)
            return SenderReport(
                projections=totals.projections,
                bytes=totals.frames * self._session.info.frame_bytes,
                seconds=time.monotonic() - self._started_at if totals.frames else 0.0,
                darks=totals.darks,
                flats=totals.flats,
                dropped=totals.dropped,
                acked=acked,
                unacknowledged=totals.frames - acked,
                refused=max((band.refused for band in bands), default=0),
                retransmitted=sum(band.retransmitted for band in bands),
                asked_again=sum(band.asked_again for band in bands),
                blocked_s=self._blocked_s,
                bands=len(bands),
                written=self._session.written,
            )

    def abort(self, text: str) -> None:
        """Abort before the end and tell the receiver why; what it has received stays valid."""
        with self._changed:
            self._session.abort(text)
            self._stopping = True
        self._join()

    def close(self) -> None:
        """Free the address. Before the end of the scan this is an `abort`."""
        self.abort("the producer stopped before the end of the scan")

    def _warn_if_forgetful(self) -> None:
        """Log once that memory holds less than what a restarted receiver would ask for."""
        with self._changed:
            if self._forgot or not self._session.forgets:
                return
            self._forgot = True
        report, frames = self.report, self._session.max_held
        lasts_s = frames * report.seconds / max(1, report.projections)
        _LOG.warning(
            "only the last %d frames are in memory, the receiver's checkpoint is older: a job that is killed now "
            "cannot continue. Archive the frames (--archive FILE), or write a checkpoint every %.0f s (recon --set "
            "checkpoint.every_s)",
            *(frames, max(1.0, lasts_s / 2)),
        )

    def _raise_if_over(self) -> None:
        self._raise_failure()
        if self._over:
            raise PeerLostError(f"{self._url}: the stream is closed")

    def _wake(self) -> None:
        if not self._over:
            self._listener.wake()

    def _run(self) -> None:
        try:
            while self._exchange():
                pass
        except PeerError:
            for peer, parts in self._session.outgoing(time.monotonic()):
                self._post(peer, parts)
            raise

    def _release(self) -> None:
        # when one of several receivers is lost, the others are notified
        several = len(self._session.bands) > 1
        self._listener.close(_LINGER_S if self._failure is None or several else 0.0)

    def _exchange(self) -> bool:
        """Send what is due, take one message. False when there is nothing more to do."""
        now = time.monotonic()
        with self._changed:
            stopping = self._stopping
            if not stopping:
                self._session.check(now, self._listener.trouble)
            outgoing = self._session.outgoing(now)
            wait_s = self._session.wait_s(now)
        for peer, parts in outgoing:
            self._post(peer, parts)
        if stopping:
            return False
        received = self._listener.recv(wait_s)
        if received is not None:
            self._take(*received)
        return True

    def _post(self, peer: bytes, parts: tuple[Part, ...]) -> None:
        if not self._listener.send(peer, parts):
            with self._changed:
                self._session.lost(peer)

    def _take(self, peer: bytes, parts: list[memoryview]) -> None:
        with self._changed:
            events = self._session.receive(peer, parts, time.monotonic())
            self._changed.notify_all()
        for event in events:
            match event:
                case Joined(resume=resume, stream=stream):
                    self._listener.admit(peer)
                    level = logging.DEBUG if stream else logging.INFO
                    _LOG.log(level, "%s: receiver connected, sending from frame %d on", self._url, resume)
                case Interrupted(text=text):
                    _LOG.warning("%s: connection lost (%s), waiting for the receiver", self._url, text)
                case TurnedAway(text=text):
                    level = logging.DEBUG if text in self._told else logging.WARNING
                    self._told.add(text)
                    _LOG.log(level, "%s: connection rejected: %s (logged once)", self._url, text)
