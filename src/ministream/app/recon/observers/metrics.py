"""Prometheus metrics of a run: rank 0 tells its endpoint what it counts, the other ranks send it their stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal, TypeAlias

from ministream.app.recon.observing import Quiet, Run, Update, VolumeWritten
from ministream.monitor import catalogue
from ministream.monitor.catalogue import Reading
from ministream.parallel.mailbox import Mailbox

_Phase: TypeAlias = Literal["waiting", "live", "complete", "incomplete"]
_PHASES: tuple[_Phase, ...] = ("waiting", "live", "complete", "incomplete")


class TellMetrics(Quiet):
    """Nothing is computed before a scrape, except the stages of the other ranks, which come with each update."""

    stage = "metrics"

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run, self._books = run, run.parts.books
        self._mailbox = Mailbox(run.comm)
        self._stages: dict[int, dict[str, float]] = {}
        self._last: Update | None = None
        self._phase: _Phase = "waiting"
        self._seen, self._arrived_s = 0, 0.0
        if run.metrics is not None:
            run.metrics.add(self._readings)

    def updated(self, update: Update) -> None:
        """Send this rank's stages to rank 0."""
        self._last = update
        if self._run.comm.rank:
            self._mailbox.post(self._run.clock.seconds())

    def poll(self) -> None:
        """Take what the other ranks have sent."""
        self._stages.update(self._mailbox.poll())
        received = self._books.ledger.received
        if received != self._seen:
            self._seen, self._arrived_s, self._phase = received, time.time(), "live"

    def finished(self, written: VolumeWritten) -> None:
        """The outcome is shown until the job has ended."""
        self._phase = "complete" if written.complete else "incomplete"

    def _readings(self) -> Iterator[Reading]:
        """In the endpoint's thread."""
        books = self._books
        yield Reading(catalogue.EXPECTED, self._run.assignment.scan.projections)
        yield Reading(catalogue.LAST_ARRIVAL, self._arrived_s)
        yield Reading(catalogue.RANKS, self._run.comm.size)
        yield Reading(catalogue.UPDATES, books.updates)
        yield Reading(catalogue.ITERATIONS, sum(list(books.iterations)))
        yield Reading(catalogue.MENDED_PIXELS, books.repaired)
        for phase in _PHASES:
            yield Reading(catalogue.PHASE, float(phase == self._phase), (phase,))
        for notice in self._run.notices():
            yield Reading(catalogue.WARNINGS, 1, (notice.code,))
        yield from self._counts()
        yield from self._last_update()
        yield from self._latencies()
        yield from self._stage_readings()

    def _counts(self) -> Iterator[Reading]:
        ledger = self._books.ledger.copy()
        totals = ledger.totals()
        for state in ("received", "refused", "repeated", "used", "mended", "imaged", "written"):
            yield Reading(catalogue.PROJECTIONS, getattr(totals, state), (state,))
        for kind, reasons in ledger.refusals.items():
            for reason, count in reasons.items():
                yield Reading(catalogue.REFUSED, count, (kind, reason))
        lag = ledger.received - ledger.refused - ledger.repeated - ledger.imaged
        yield Reading(catalogue.LAG, max(0, lag))

    def _last_update(self) -> Iterator[Reading]:
        last = self._last
        if last is not None and last.residual_norm is not None:
            yield Reading(catalogue.RESIDUAL, last.residual_norm)
        if last is not None and last.behind_s is not None:
            yield Reading(catalogue.IMAGE_AGE, last.behind_s)

    def _latencies(self) -> Iterator[Reading]:
        books = self._books
        known = {"received": books.arrival_latency, "image": books.latency, "published": books.published_latency}
        for until, latency in known.items():
            if latency is not None and latency.count:
                yield Reading(catalogue.LATENCY, latency, (until,))
        yield Reading(catalogue.CLOCK_TROUBLE, books.latency.negative)

    def _stage_readings(self) -> Iterator[Reading]:
        stages = {0: self._run.clock.seconds()} | dict(self._stages)
        others: dict[str, float] = {}
        for rank, seconds in stages.items():
            for stage, spent in seconds.items():
                if rank < catalogue.MAX_RANKS:
                    yield Reading(catalogue.STAGES, spent, (str(rank), stage))
                else:
                    others[stage] = others.get(stage, 0.0) + spent
        for stage, spent in others.items():
            yield Reading(catalogue.STAGES, spent, ("others", stage))


def observe(run: Run) -> TellMetrics | None:
    """An instance on every rank if metrics are served."""
    return TellMetrics(run) if run.assignment.config.output.metrics is not None else None
