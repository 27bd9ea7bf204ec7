"""The end of a run: the volume first, then the summary, then what people look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ministream import __version__, log
from ministream.app.recon.books import Books
from ministream.app.recon.gate import ScanGate
from ministream.app.recon.ingress import Ingress
from ministream.app.recon.observing import Observers, Run
from ministream.errors import StorageError
from ministream.monitor import StageClock, Summary, peak_memory_mib

_LOG = log.get(__name__)


class Outcome:
    """Writes what a run has come to; every rank makes one, `ingress` is rank 0's."""

    def __init__(
        self,
        run: Run,
        books: Books,
        observers: Observers,
        clock: StageClock,
        ingress: Ingress | None,
        gate: ScanGate,
    ) -> None:
        self._run, self._books, self._observers, self._clock = run, books, observers, clock
        self._ingress, self._gate = ingress, gate

    def write(self, image: NDArray[np.float32], *, scattered: int) -> Summary | None:
        """Write the volume and the summary, and let the observers finish; collective. Raises StorageError.

        `scattered` are the bytes that this rank sent to others. The summary comes back on rank 0. It is written before
        the observers finish, which may fail, and again with what came after.
        """
        seconds = self._books.elapsed_s
        measured = self._measured(image)
        complete = self._ingress is not None and self._ingress.complete and not self._gate.flaw
        state = dataclasses.replace(
            self._books.volume_state(complete=complete, quality=measured),
            warnings=self._gate.book.notices,
            accepted=self._gate.book.accepted,
        )
        with self._clock.timed("write"):
            volume = self._run.writer.final(image, state)
        volumes = [*self._observers.files, volume]
        summary = self._summary(seconds, measured, volumes, scattered)
        with self._run.comm.together():
            self._store(summary)
        self._observers.finished()
        if summary is None:
            return None
        drawn = [path for path in self._observers.files if path not in volumes]
        summary = dataclasses.replace(
            summary,
            stages=self._clock.seconds(),
            failures=self._observers.failures,
            files=[*summary.files, *map(str, drawn)],
        )
        try:
            self._store(summary)
        except StorageError as error:
            _LOG.warning("the summary does not list the pictures: %s", error)
        return summary

    def _summary(
        self, seconds: float, measured: Mapping[str, float], volumes: list[Path], scattered: int
    ) -> Summary | None:
        """What every rank knows, on rank 0; collective."""
        run, books, ingress = self._run, self._books, self._ingress
        repaired, sent = run.comm.sum(np.array([books.repaired, scattered], np.float64))
        memory = run.comm.allgather(peak_memory_mib())
        stages = run.comm.allgather(self._clock.seconds())
        if ingress is None:
            return None
        return Summary(
            scan_id=run.assignment.scan.scan_id,
            version=__version__,
            complete=ingress.complete and not self._gate.flaw,
            ending=self._gate.flaw or ingress.ending,
            counters=books.counters,
            repaired_pixels=int(repaired),
            updates=books.updates,
            seconds=seconds,
            projections_per_s=books.counters.used / seconds,
            latency_s={"p50": books.latency.percentile(50), "p99": books.latency.percentile(99)},
            latency_negative=books.latency.negative,
            ranks=run.comm.size,
            threads=run.assignment.threads,
            tunnel=ingress.tunnel(),
            end_to_end="CURVE" if run.assignment.config.stream.curve else None,
            bytes=ingress.bytes_received,
            bytes_scattered=int(sent),
            bytes_written=len(volumes) * run.assignment.scan.rows * run.assignment.scan.cols**2 * 4,
            stages=self._clock.seconds(),
            stages_per_rank=stages,
            quality=measured or None,
            residuals=books.residuals,
            iterations=books.iterations,
            peak_memory_mib=memory,
            storage=run.writer.way,
            write_hidden_s=run.writer.hidden_s,
            warnings=self._gate.book.notices,
            accepted=self._gate.book.accepted,
            failures=self._observers.failures,
            files=[str(path) for path in volumes],
        )

    def _store(self, summary: Summary | None) -> None:
        if summary is not None:
            summary.write(self._run.assignment.config.output.directory / "summary.json")

    def _measured(self, image: NDArray[np.float32]) -> Mapping[str, float]:
        """Quality against the truth or the reference, where one is known."""
        with self._clock.timed("quality"):
            sums = self._run.comparison.sums(image) if self._run.comparison.known else None
        return sums.mean() if sums is not None else {}
