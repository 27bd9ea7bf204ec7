"""The last step before the wire: says which projections are missing between the frames, and records what is sent."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from ministream import log
from ministream.app.producer.stopping import StopSignals
from ministream.model import Frame, FrameKind, Scan, ranges
from ministream.monitor import Latency
from ministream.storage.archive import Archive
from ministream.transport import Sender, SenderReport
from ministream.wire.native import AT_SOURCE

_LOG = log.get(__name__)

# The reason under which projections count that were not acquired because a signal stopped the producer.
STOPPED = "stopped"


class AccountedSender:
    """Passes frames to `sender`, and reports the projections that do not come.

    A gap between the indices of two projections means that those between were lost before they reached the producer,
    unless the overflow policy dropped them, now or, by `policies`, when the stream was recorded. Nothing is reported
    before the first projection, since a report ends the calibration. With `calibration_first` later flats and darks are
    not sent: projections are corrected as they come. `record` keeps every frame that was sent, and who dropped others.
    `dropped` counts projections by the reason why they were not sent, after a signal (`stop`) the rest of the scan too;
    `latency` records, where it is set, the seconds from the acquisition until a projection has entered the stream.
    """

    def __init__(
        self,
        sender: Sender,
        scan: Scan,
        record: Archive | None = None,
        *,
        calibration_first: bool = True,
        policies: Mapping[int, str] = MappingProxyType({}),
        stop: StopSignals | None = None,
    ) -> None:
        self._sender, self._scan, self._record, self._policies = sender, scan, record, policies
        self._stop = stop or StopSignals()
        self._calibration_first, self._late = calibration_first, 0
        self._next = self._lost = 0
        self.dropped = Counter[str]()
        self.latency: Latency | None = None
        self._reports: list[tuple[Sequence[int], str, float]] = []
        self._expected_gaps: set[int] = set()

    def drop(self, indices: Sequence[int], *, policy: str) -> None:
        """Projections that the overflow policy dropped."""
        if indices:
            self._reports.append((indices, policy, time.time()))
            self._expected_gaps.update(indices)
            self.dropped[policy] += len(indices)

    @property
    def left_out(self) -> Mapping[int, str]:
        """By index, the projections that a policy dropped when the stream was recorded, or a signal has kept back."""
        rest = range(self._next, self._scan.projections) if self._stop.cut else ()
        return dict.fromkeys(rest, STOPPED) | dict(self._policies)

    def missing(self, dropped: int) -> int:
        """Projections of the scan that were not acquired, if nothing more comes; `dropped` is that of `finish`."""
        return len(self.left_out) + (self._lost if self._stop.cut else dropped)

    def send(self, frame: Frame, again: Callable[[], Frame] | None = None) -> None:
        """Send a frame after the reports on those before it; wait for credit. `again` reads it once more."""
        if frame.kind is FrameKind.PROJECTION:
            self._report(frame.index)
            self._next = max(self._next, frame.index + 1)
        elif self._next and self._calibration_first:
            self._leave_out(frame)
            return
        self._sender.send(frame, again)
        self._stop.streaming = True
        if self.latency is not None and frame.kind is FrameKind.PROJECTION:
            self.latency.record(time.time() - frame.acquired_s)
        if self._record is not None:
            self._record.append(frame)

    @property
    def report(self) -> SenderReport:
        """What has been sent so far."""
        return self._sender.report

    def finish(self, dropped: int) -> SenderReport:
        """Send the end; `dropped` projections were lost before they reached the producer, gaps included."""
        if self._stop.cut:  # how many of the rest would have been lost is not known
            self._report(max(self._next, self._scan.projections), otherwise=STOPPED)
            dropped = self._lost
        recorded_stop = max(self._policies, default=-1) + 1
        self._report(max(self._next, recorded_stop, self._scan.projections if dropped > self._lost else 0))
        lost = max(dropped, self._lost)
        if self._late:
            _LOG.warning("%d flats and darks came after the first projection and were not sent", self._late)
        if lost:
            _LOG.warning("%d projections were lost before they reached the producer", lost)
        if self._record is not None:
            self._record.dropped = lost + self.dropped.total() - self.dropped[AT_SOURCE]
        return self._sender.finish(lost)

    def _leave_out(self, frame: Frame) -> None:
        if not self._late:
            _LOG.warning(
                "%s %d came after the first projection: projections are corrected with the flats and darks before "
                "them. It is in the file of --archive alone; reconstruct that file afterwards with --file to use it",
                *(frame.kind.name.lower(), frame.index),
            )
        self._late += 1

    def _report(self, stop: int, *, otherwise: str = AT_SOURCE) -> None:
        """Report the projections below `stop` that were not sent, by their policy or `otherwise`."""
        missing = [index for index in range(self._next, stop) if index not in self._expected_gaps]
        for policy, together in groupby(missing, key=lambda index: self._policies.get(index, otherwise)):
            if policy == AT_SOURCE:
                self._lose(list(together))
            else:
                self.drop(list(together), policy=policy)
        for indices, policy, at_s in self._reports:
            self._sender.omit(indices, reason=policy, at_s=at_s)
            if self._record is not None:
                self._record.omit(dict.fromkeys(indices, policy))
        self._reports.clear()
        self._next = max(self._next, stop)
        self._expected_gaps = {index for index in self._expected_gaps if index >= stop}

    def _lose(self, indices: Sequence[int]) -> None:
        """Projections that were lost before they reached the producer."""
        level = logging.DEBUG if self._lost else logging.WARNING
        _LOG.log(level, "projections %s were lost before they reached the producer", ranges(indices))
        self._sender.omit(indices, reason=AT_SOURCE, at_s=time.time())
        self._lost += len(indices)
        self.dropped[AT_SOURCE] += len(indices)
