"""What the receiving ranks take in: the same frames on all of them, and the fate of every frame."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import numpy as np

from ministream import log
from ministream.app.recon.producer_link import ProducerLink, Route
from ministream.config import Config
from ministream.errors import FrameError, MinistreamError, ProtocolError
from ministream.model import Counters, Frame, FrameKind, Scan
from ministream.parallel.mpi import Comm, Request
from ministream.plausibility.projections import never_written
from ministream.transport import Arrived, Ended, Event, Lost, Receiver, ReceivingRank, Refused, open_wire
from ministream.tunnel import curve
from ministream.wire.native import Share

_LOG = log.get(__name__)

_REASON_BYTES = 16
_NEVER_WRITTEN = "never-written"


@dataclass(frozen=True, slots=True)
class _Due:
    """The next frame in the stream's order; None where it was refused for `reason`."""

    seq: int
    frame: Frame | None
    reason: str = ""


class Ingress:
    """Receives one band of every frame, in step with the other receiving ranks, and hands them out without waiting.

    `comm` is the receiving ranks'; each makes one. They agree, batch by batch, on what comes next: as many frames as
    the slowest has, and none that one of them had to refuse. So the ranks behind them have the same projections, and
    update together. The stream is over for all when it is for one.

    After `conclude`, `complete` says on each whether every projection that was sent arrived whole, `ending` in one line
    how it ended, `bytes_received` how much came to all together; and `failure` is the error of this one that must end
    the job, if any.
    """

    def __init__(self, comm: Comm, config: Config, link: ProducerLink | None) -> None:
        self._comm, self._config, self._link = comm, config, link
        self._stack = ExitStack()
        self._receiver: Receiver | None = None
        self._over = self._ended = self._unread = False
        self._due: deque[_Due] = deque()
        self._round: Request | None = None
        self._step = 1
        self._shape = (0, 0)
        self._projections_fed = 0
        self._last_seq = -1
        self._taken = 0
        self._strict = config.stream.strict
        self.counters = Counters()
        self.unwritten: list[int] = []
        self.bytes_received = 0
        self.complete = False
        self.ending = ""
        self.failure: MinistreamError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def wait_for_scan(self, offered: Route | None, share: Share) -> Scan:
        """Wait for the producer, and what it says of the scan; `offered`, on rank 0, is the way there.

        From then on an interrupt ends the stream in order; a second one ends the job at once.

        Raises PeerLostError when it stays away longer than the configured time, ProtocolError when it speaks another
        protocol, ConfigError for an address that cannot be dialled from here.
        """
        route = cast(Route, self._comm.bcast(offered))
        self._receiver = self._stack.enter_context(
            open_wire(self._config.stream.wire, self._config).receiver(
                route.urls_for(self._comm.rank),
                rank=ReceivingRank(number=self._comm.rank, count=self._comm.size, share=share),
                keys=curve.load(self._config.stream.curve, "receiver"),
            )
        )
        scan = self._receiver.scan()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._interrupt)
        return scan

    def begin(self, *, batch: int, step: int, shape: tuple[int, int]) -> None:
        """Hand out at most `batch` frames of `shape` at once, and end a batch where the window's next update is due."""
        self._step, self._shape = step, shape
        record = np.dtype([("count", "i8"), ("reasons", f"S{_REASON_BYTES}", (batch,))])
        self._mine, self._all = np.zeros(1, record), np.zeros(self._comm.size, record)

    def feed(self) -> Sequence[Frame] | None:
        """The frames that are there for all, an empty list where none is, None when no more will come.

        Raises ProtocolError for frames of another shape.
        """
        if self._ended:
            return None
        self._pull()
        if self._round is None and (self._due or self._over):
            self._propose()
        if self._round is None or not self._round.Test():
            return []
        self._round = None
        count = int(self._all["count"].min())
        if not count:  # one of them will get no more
            self._ended = self._over = True
            return None
        return self._hand_out(count)

    def acknowledge(self) -> None:
        """Everything handed out so far has reached its window: let the producer send more."""
        assert self._receiver is not None
        self._unread = False
        if self._last_seq >= 0:
            self._receiver.ack(self._last_seq)

    def conclude(self) -> None:
        """After the end, with everything used: learn how it was for the others; collective."""
        assert self._receiver is not None
        self.acknowledge()
        whole = self.counters.received == self.counters.sent and not self.counters.refused
        mine = (self.complete and whole, self.ending, self._receiver.report.bytes)
        everyone = self._comm.allgather(mine)
        self.bytes_received = sum(received for _, _, received in everyone)
        self.complete = all(complete for complete, _, _ in everyone)
        endings = [(rank, how) for rank, (complete, how, _) in enumerate(everyone) if how and not complete]
        if endings:
            rank, how = endings[0]
            self.ending = f"receiving rank {rank}: {how}" if rank else how
        if self._comm.rank == 0:
            _LOG.info("end of the stream: %s", self.ending)

    def report(self, *, complete: bool) -> None:
        """The volume is written; tell the producer whether every projection is in it."""
        assert self._receiver is not None
        self._receiver.conclude(written=True, complete=complete, text=self.ending)

    @property
    def waiting(self) -> int:
        """Whole frames that have come and have not been handed out."""
        return self._receiver.report.received - self._taken if self._receiver is not None else 0

    def tunnel(self) -> dict[str, str | int] | None:
        """Kind, cipher and bytes of the tunnel in use; None without one, and on other ranks than rank 0."""
        return self._link.tunnel() if self._link is not None else None

    def _pull(self) -> None:
        """Take what has come to this rank, as much as one batch holds."""
        assert self._receiver is not None
        while not self._over and len(self._due) < self._mine["reasons"].size:
            event = self._receiver.next(0)
            if event is None:
                break
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Arrived(seq=seq, frame=frame):
                if frame.pixels.shape != self._shape:
                    raise ProtocolError(f"{frame.pixels.shape} pixels came to the rank that has {self._shape} of them")
                self._due.append(_Due(seq, frame, _NEVER_WRITTEN if _is_blank(frame) else ""))
            case Refused(seq=seq, reason=reason, text=text):
                _LOG.warning("frame refused: %s", text)
                if self._strict:
                    self.counters.refuse(reason)
                    self._end(text, FrameError(f"{text}; the job is strict"))
                else:
                    self._due.append(_Due(seq, None, reason))
            case Ended(totals=totals):
                self.counters.sent, self.counters.dropped = totals.projections, totals.dropped
                self._end("the producer sent everything")
                self.complete = not totals.dropped
            case Lost(text=text):
                self._end(text)

    def _propose(self) -> None:
        """Begin to tell the others what is due here."""
        reasons = self._mine["reasons"][0]
        self._mine["count"] = min(len(self._due), reasons.size)
        reasons[:] = b""
        for k, due in zip(range(reasons.size), self._due, strict=False):
            reasons[k] = due.reason.encode()[:_REASON_BYTES]
        self._round = self._comm.start_allgather(self._mine.view(np.uint8), self._all.view(np.uint8))

    def _hand_out(self, count: int) -> list[Frame]:
        """The next `count` frames of the stream, or those up to the window's next update, without the refused ones."""
        frames: list[Frame] = []
        for refusals in self._all["reasons"][:, :count].T:
            due = self._due.popleft()
            self._last_seq = due.seq
            self._taken += due.frame is not None
            words = [text.decode() for text in refusals]
            # rows that see nothing are normal in one band; a projection that was never written shows nothing in all
            blank = all(word == _NEVER_WRITTEN for word in words)
            reason = _NEVER_WRITTEN if blank else next((word for word in words if word not in ("", _NEVER_WRITTEN)), "")
            if reason or due.frame is None:
                self.counters.refuse(reason)
                if reason == _NEVER_WRITTEN and due.frame is not None:
                    self.unwritten.append(due.frame.index)
                continue
            frames.append(due.frame)
            if due.frame.kind is FrameKind.PROJECTION:
                self.counters.received += 1
                self._projections_fed += 1
                if self._projections_fed % self._step == 0:
                    break
        self._unread = self._unread or bool(frames)
        if not self._unread:
            self.acknowledge()  # nobody else will: they were refused elsewhere
        return frames

    def _end(self, how: str, failure: MinistreamError | None = None) -> None:
        self._over, self.ending, self.failure = True, how, failure

    def _interrupt(self, number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._end(f"stopped by {signal.Signals(number).name} after {self._projections_fed} projections")


def _is_blank(frame: Frame) -> bool:
    return frame.kind is FrameKind.PROJECTION and never_written(frame.pixels) is not None
