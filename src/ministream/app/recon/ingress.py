"""Ingress of the receiving ranks: all of them receive the same frames, and every frame is accounted for."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from ministream import log
from ministream.app.recon.producer_link import ProducerLink, Route
from ministream.app.stop_signals import SAME_SIGNAL_S, STOP_SIGNALS
from ministream.config import Config
from ministream.errors import FrameError, MinistreamError, ProtocolError
from ministream.ledger import Ledger
from ministream.model import Frame, FrameKind, Scan
from ministream.monitor import Latency, catalogue
from ministream.monitor.catalogue import Reading
from ministream.parallel.mpi import Comm, Request
from ministream.plausibility.projections import never_written
from ministream.plausibility.record import SkippedProjection
from ministream.state import State
from ministream.transport import (
    Arrived,
    Ended,
    Event,
    Lost,
    Omitted,
    Receiver,
    ReceivingRank,
    Refused,
    StreamReport,
    open_wire,
)
from ministream.tunnel import curve
from ministream.wire.native import AT_SOURCE, Share, Totals

_LOG = log.get(__name__)

_REASON_BYTES = 16
_NEVER_WRITTEN = "never-written"


@dataclass(frozen=True, slots=True)
class _Due:
    """The next frame in stream order; `frame` is None if it was refused for `reason`."""

    seq: int
    kind: FrameKind
    frame: Frame | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Reached:
    """Position up to which frames are in the windows; the next batch may already be in transit to the ranks."""

    seq: int
    projections_fed: int
    handed_out: dict[FrameKind, int]
    ledger: Ledger
    unwritten: int


class Ingress:
    """Receives one band of every frame, in lockstep with the other receiving ranks, and hands frames out non-blocking.

    `comm` contains the receiving ranks; each creates an instance. They agree on every batch: it has as many frames as
    the slowest rank has received, and a frame refused by one rank is refused by all. All ranks of the job therefore
    hold the same projections and update together. The stream ends for all ranks when it ends for one.

    `ledger` counts the outcome of each frame and is equal on all ranks. After `conclude`, `announced` is the ledger of
    the producer (None if a rank did not receive END), `ending` describes in one line how the stream ended,
    `bytes_received` is the total of all ranks, `streams` what each connection of each rank carried, and `failure` is
    the error of this rank that must end the job, if any.

    `arrivals` records, where it is set, the seconds from the acquisition to the arrival of every projection.

    `before` holds the values of a checkpoint: the stream continues after its last frame.

    The first signal ends the stream cleanly: frames that have arrived are still handed out. A second signal ends the
    job immediately.
    """

    def __init__(
        self, comm: Comm, config: Config, link: ProducerLink | None, before: Mapping[str, Any] | None = None
    ) -> None:
        self._comm, self._config, self._link = comm, config, link
        self._stack = ExitStack()
        self._receiver: Receiver | None = None
        self._over = self._ended = self._unread = False
        self._due: deque[_Due] = deque()
        self._round: Request | None = None
        self._step = 1
        self._stepped_at = 0
        self._shape = (0, 0)
        self._projections_fed = 0
        self._last_seq = -1
        self._resume_at = 0
        self._walltime_ends_s = _job_ends_s() - config.checkpoint.walltime_margin_s
        self._taken = 0
        self._strict = config.stream.strict
        self.unwritten: list[SkippedProjection] = []
        self.omitted: list[Omitted] = []
        self._stop = ""
        self._stop_at: int | None = None
        self._stopped_at_s = 0.0
        self._pulled = 0
        self.arrivals: Latency | None = None
        self.ledger = Ledger()
        self.announced: Ledger | None = None
        self.bytes_received = 0
        self.streams: list[tuple[StreamReport, ...]] = []
        self.ending = ""
        self.failure: MinistreamError | None = None
        self._handed_out = dict.fromkeys(FrameKind, 0)
        self._held: Totals | None = None
        self._scan_id = ""
        if before is not None:
            self._resume(before)
        self._reached = self._handed()

    def _resume(self, before: Mapping[str, Any]) -> None:
        """Restore the stream position from the values of a checkpoint."""
        held = json.loads(before["stream.held"])
        self._held, self._scan_id = Totals(**held), before["scan"]["scan_id"]
        self._handed_out = {kind: held[kind.name.lower() + "s"] for kind in FrameKind}
        self._last_seq, self._projections_fed = before["stream.position"], before["stream.projections_fed"]
        self.unwritten = [SkippedProjection(**each) for each in json.loads(before["stream.unwritten"])]
        self.omitted = [
            Omitted(**{**each, "indices": tuple(each["indices"])}) for each in json.loads(before["stream.omitted"])
        ]
        self._resume_at = self._last_seq + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def wait_for_scan(self, offered: Route | None, share: Share) -> Scan:
        """Wait for the producer and return its scan description; `offered`, on rank 0, is the route to the producer.

        After this call a signal ends the stream cleanly.

        Raises PeerLostError when the wait times out, ProtocolError when the producer uses another protocol,
        ConfigError for an address that this node cannot connect to.
        """
        route = cast(Route, self._comm.bcast(offered))
        self._receiver = self._stack.enter_context(
            open_wire(self._config.stream.wire, self._config).receiver(
                route.urls_for(self._comm.rank, self._config.stream.streams),
                rank=ReceivingRank(
                    number=self._comm.rank,
                    count=self._comm.size,
                    share=share,
                    scan_id=self._scan_id,
                    held=self._held,
                    saves=self._config.checkpoint.periodic,
                ),
                keys=curve.load(self._config.stream.curve, "receiver"),
            )
        )
        scan = self._receiver.scan()
        for number in STOP_SIGNALS:
            signal.signal(number, self.interrupt)
        return scan

    def begin(self, *, batch: int, step: int, shape: tuple[int, int]) -> None:
        """Set the batch limit: at most `batch` frames of `shape`, ending where the next update of the window is due."""
        self._step, self._shape = step, shape
        record = np.dtype([("count", "i8"), ("reasons", f"S{_REASON_BYTES}", (batch,))])
        self._mine, self._all = np.zeros(1, record), np.zeros(self._comm.size, record)

    def change_step(self, step: int) -> None:
        """Batches end every `step` projections from here on, where an update is due."""
        self._step, self._stepped_at = step, self._projections_fed

    def finish(self, why: str) -> None:
        """End the stream as a signal does: frames that have arrived are still handed out."""
        if not self._stop:
            self._stop, self._stopped_at_s = why, time.monotonic()
            _LOG.warning("%s: finishing with the frames that have arrived", why)

    def feed(self) -> Sequence[Frame] | None:
        """The frames that all receiving ranks have: an empty list if there are none yet, None after the end.

        Raises ProtocolError for frames of another shape.
        """
        if self._ended:
            return None
        self._pull()
        # A rank joins a round only when it has frames or the end of its stream: a count of 0 then means END, and ranks
        # that are merely idle do not generate traffic.
        if self._round is None and (self._due or self._over):
            self._propose()
        if self._round is None or not self._round.Test():
            return []
        self._round = None
        count = int(self._all["count"].min())
        if not count:  # the stream has ended for at least one rank
            self._ended = self._over = True
            return None
        return self._hand_out(count)

    def acknowledge(self) -> None:
        """Confirm that all frames handed out have reached the window: the producer may send more."""
        assert self._receiver is not None
        self._unread = False
        self._reached = self._handed()
        if self._last_seq >= 0:
            self._receiver.ack(self._last_seq)

    def conclude(self) -> None:
        """Combine the outcome of all receiving ranks after the last frame was used; collective."""
        assert self._receiver is not None
        self.acknowledge()
        # frames that arrived here but were not handed out, because the stream ended for another rank
        self.ledger.received += self._arrived - self._taken
        everyone = self._comm.allgather((self.announced, self.ending, self._receiver.report))
        self.bytes_received = sum(report.bytes for _, _, report in everyone)
        self.streams = [report.streams for _, _, report in everyone]
        # the volume is incomplete if any rank lacks END, so the first such rank defines `ending` for all
        early = [(rank, how) for rank, (announced, how, _) in enumerate(everyone) if announced is None and how]
        if early:
            rank, how = early[0]
            self.ending = f"receiving rank {rank}: {how}" if rank else how
            if self._link is not None and self._link.failure is not None:
                self.ending += f"; {self._link.failure}"
            self.announced = None
        if self._comm.rank == 0:
            _LOG.info("end of the stream: %s", self.ending)

    @property
    def lost(self) -> list[int]:
        """Projections that never reached the producer."""
        return [index for omitted in self.omitted if omitted.reason == AT_SOURCE for index in omitted.indices]

    def report(self, *, complete: bool, missing: Sequence[str]) -> None:
        """Report to the producer that the volume is written, whether it is complete, and what is missing."""
        assert self._receiver is not None
        self._receiver.conclude(written=True, complete=complete, text="; ".join(missing) or self.ending)

    @property
    def position(self) -> int:
        """Sequence number of the last frame in the windows, over all kinds of frames; -1 before the first."""
        return self._reached.seq

    def _handed(self) -> _Reached:
        """A snapshot of the position and the counters of the frames handed out so far."""
        return _Reached(
            seq=self._last_seq,
            projections_fed=self._projections_fed,
            handed_out=dict(self._handed_out),
            ledger=self.ledger.copy(),
            unwritten=len(self.unwritten),
        )

    def save(self, position: int) -> None:
        """Confirm that a checkpoint contains all frames up to `position`: the producer may discard them."""
        assert self._receiver is not None
        if position >= 0:
            self._receiver.save(position)

    def state(self) -> State:
        """The stream position of the windows, and the ledger without the frames still in transit to them."""
        # `self.ledger` already counts the batch in transit, which a restart requests again and would count twice
        reached, ledger = self._reached, self.ledger.copy()
        ledger.received, ledger.refusals = reached.ledger.received, reached.ledger.refusals
        passed = [omitted for omitted in self.omitted if omitted.seq <= reached.seq]
        held = {kind.name.lower() + "s": count for kind, count in reached.handed_out.items()}
        return {
            "books.ledger": json.dumps(ledger.as_dict()),
            "stream.position": reached.seq,
            "stream.projections_fed": reached.projections_fed,
            "stream.held": json.dumps({**held, "omissions": len(passed), "drops": _counts(passed)}),
            "stream.unwritten": json.dumps([dataclasses.asdict(each) for each in self.unwritten[: reached.unwritten]]),
            "stream.omitted": json.dumps([dataclasses.asdict(omitted) for omitted in passed]),
        }

    @property
    def waiting(self) -> int:
        """Frames that have arrived and have not been handed out."""
        return self._arrived - self._taken

    @property
    def _arrived(self) -> int:
        """Frames that have arrived on this rank, valid or refused."""
        assert self._receiver is not None
        report = self._receiver.report
        return report.received + report.refused

    def dropped(self) -> Mapping[str, int]:
        """Projections that the producer left out so far, by reason; may be called in another thread."""
        return _counts(list(self.omitted))

    def readings(self) -> Iterator[Reading]:
        """What metrics show of the stream; may be called in another thread."""
        if self._receiver is None:
            return
        report = self._receiver.report
        yield Reading(catalogue.RECEIVED_BYTES, report.bytes)
        yield Reading(catalogue.CONNECTIONS, report.dialled)
        yield Reading(catalogue.ASKED_AGAIN, report.asked_again)
        yield from catalogue.dropped(self.dropped())

    def tunnel(self) -> dict[str, str | int] | None:
        """Kind, cipher and bytes of the tunnel in use; None without a tunnel and on all ranks except rank 0."""
        return self._link.tunnel() if self._link is not None else None

    def _pull(self) -> None:
        """Receive the frames available on this rank, up to one batch."""
        assert self._receiver is not None
        if not self._stop and time.time() > self._walltime_ends_s:
            self._stop = "the walltime limit"
            _LOG.warning("walltime limit approaching: finishing with the frames that have arrived")
        # fix the end at the frames that have arrived: otherwise a fast producer would postpone the stop forever
        if self._stop and self._stop_at is None:
            self._stop_at = self._arrived
        while not self._over and len(self._due) < self._mine["reasons"].size:
            event = self._receiver.next(0) if self._stop_at is None or self._pulled < self._stop_at else None
            if event is None:
                if self._stop_at is not None:
                    self._end(f"stopped by {self._stop}")
                break
            self._take(event)

    def _take(self, event: Event) -> None:
        assert self._receiver is not None
        match event:
            case Arrived(seq=seq) | Refused(seq=seq) if seq < self._resume_at:
                # a wire without a resume position restarts at the first frame: skip the frames of the checkpoint
                self._pulled, self._taken = self._pulled + 1, self._taken + 1
                self._receiver.ack(seq)
            case Arrived(seq=seq, frame=frame, at_s=at_s):
                if frame.pixels.shape != self._shape:
                    raise ProtocolError(f"frame {seq}: received shape {frame.pixels.shape}, expected {self._shape}")
                self._pulled += 1
                if self.arrivals is not None and at_s is not None and frame.kind is FrameKind.PROJECTION:
                    self.arrivals.record(at_s - frame.acquired_s)
                self._due.append(_Due(seq, frame.kind, frame, _NEVER_WRITTEN if _is_blank(frame) else ""))
            case Refused(seq=seq, reason=reason, text=text, kind=frame_kind):
                _LOG.warning("frame refused: %s", text)
                self._pulled += 1
                if self._strict:
                    self._end(text, FrameError(f"{text}; the job is strict (--strict)"))
                else:
                    self._due.append(_Due(seq, frame_kind, None, reason))
            case Ended(totals=totals):
                delivered = totals.projections + totals.dropped
                self.announced = Ledger(delivered=delivered, sent=totals.projections, drops=dict(totals.drops))
                self._end(f"the producer sent all of its {totals.projections} projections")
            case Omitted():
                self.omitted.append(event)
            case Lost(text=text, announced=announced):
                known = f" (it had sent {announced.projections} projections)" if announced is not None else ""
                self._end(text + known)

    def _propose(self) -> None:
        """Start the exchange of frame counts and refusals with the other receiving ranks."""
        reasons = self._mine["reasons"][0]
        self._mine["count"] = min(len(self._due), reasons.size)
        reasons[:] = b""
        for k, due in zip(range(reasons.size), self._due, strict=False):
            reasons[k] = due.reason.encode()[:_REASON_BYTES]
        self._round = self._comm.start_allgather(self._mine.view(np.uint8), self._all.view(np.uint8))

    def _hand_out(self, count: int) -> list[Frame]:
        """The next `count` frames, or fewer if the next update of the window is due, without the refused ones."""
        frames: list[Frame] = []
        for refusals in self._all["reasons"][:, :count].T:
            due = self._due.popleft()
            self._last_seq = due.seq
            self._taken += 1
            self._handed_out[due.kind] += 1
            self.ledger.received += due.kind is FrameKind.PROJECTION
            words = [text.decode() for text in refusals]
            # one constant band is normal (no sample in it); a projection that was never written is constant in all
            blank = all(word == _NEVER_WRITTEN for word in words)
            reason = _NEVER_WRITTEN if blank else next((word for word in words if word not in ("", _NEVER_WRITTEN)), "")
            if reason or due.frame is None:
                self.ledger.refuse(due.kind, reason)
                if reason == _NEVER_WRITTEN and due.frame is not None:
                    self.unwritten.append(SkippedProjection(due.frame.index, due.frame.position))
                continue
            frames.append(due.frame)
            if due.kind is FrameKind.PROJECTION:
                self._projections_fed += 1
                if (self._projections_fed - self._stepped_at) % self._step == 0:
                    break  # the rest stays in `_due` and is proposed again with the next batch
        self._unread = self._unread or bool(frames)
        if not self._unread:
            self.acknowledge()  # every frame was refused, so no later call would acknowledge them
        return frames

    def _end(self, how: str, failure: MinistreamError | None = None) -> None:
        self._over, self.ending, self.failure = True, how, failure

    def interrupt(self, number: int, _frame: object) -> None:
        """Handler of the stop signals: the first ends the stream in order, the second the job."""
        name, now = signal.Signals(number).name, time.monotonic()
        if self._stop and now - self._stopped_at_s < SAME_SIGNAL_S:
            return
        if self._stop:
            raise KeyboardInterrupt(f"{name}, after {self._stop}")
        self._stop, self._stopped_at_s = name, now
        _LOG.warning("%s: finishing with the frames that have arrived; a second signal ends the job at once", name)


def _counts(omitted: Sequence[Omitted]) -> dict[str, int]:
    """Projections left out, by reason."""
    counts: dict[str, int] = {}
    for each in omitted:
        counts[each.reason] = counts.get(each.reason, 0) + len(each.indices)
    return counts


def _is_blank(frame: Frame) -> bool:
    return frame.kind is FrameKind.PROJECTION and never_written(frame.pixels) is not None


def _job_ends_s() -> float:
    """UNIX time at which Slurm ends this job; infinite if unknown."""
    text = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() else float("inf")
