"""The end of a run: writes the volume, then the summary, then the pictures."""

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
from ministream.app.recon.observing import Observers, Run, VolumeWritten
from ministream.errors import StorageError
from ministream.monitor import StageClock, Summary, peak_memory_mib
from ministream.storage import VolumeState

_LOG = log.get(__name__)


class RunOutcome:
    """Writes the results of a run; every rank has an instance, `ingress` is that of rank 0."""

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

        `scattered` are the bytes that this rank sent to others. Returns the summary on rank 0. It is written before the
        observers finish, because they may fail, and again with their files and failures.
        """
        seconds = self._books.elapsed_s
        measured = self._measured(image)
        announced = self._ingress.announced if self._ingress is not None else None
        state = dataclasses.replace(
            self._books.volume_state(announced, measured),
            flaw=self._gate.flaw,
            warnings=self._gate.book.notices,
            accepted=self._gate.book.accepted,
        )
        with self._clock.timed("write"):
            volume = self._volume(image, state)
        self._books.ledger.written = state.ledger.written
        volumes = [*self._observers.files, volume]
        summary = self._summary(seconds, measured, volumes, scattered, state.missing)
        with self._run.comm.together():
            self._store(summary)
        complete = self._run.comm.bcast(summary is not None and summary.complete)
        self._observers.finished(VolumeWritten(volume=volume, complete=complete, missing=state.missing))
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

    def _volume(self, image: NDArray[np.float32], state: VolumeState) -> Path:
        """Write the volume; if that fails, write it to the fallback folder; collective."""
        settings = self._run.assignment.config
        fallback = settings.output.fallback or settings.checkpoint_folder
        try:
            return self._run.writer.final(image, state)
        except StorageError as error:
            if self._run.comm.rank == 0:
                _LOG.warning("%s; writing the volume to the fallback folder %s", error, fallback)
            try:
                writer = self._run.writer.elsewhere(fallback)
                try:
                    return writer.final(image, state)
                finally:
                    writer.close()
            except StorageError as second:
                raise _everywhere(
                    StorageError(
                        f"the volume is lost: {error}; and in the fallback folder, {second}. Set output.fallback to a "
                        "folder on another disk."
                    )
                ) from error

    def _summary(
        self,
        seconds: float,
        measured: Mapping[str, float],
        volumes: list[Path],
        scattered: int,
        missing: tuple[str, ...],
    ) -> Summary | None:
        """Combine the data of all ranks on rank 0; collective."""
        run, books, ingress = self._run, self._books, self._ingress
        sent = run.comm.sum(np.array([scattered], np.float64))[0]
        memory = run.comm.allgather(peak_memory_mib())
        stages = run.comm.allgather(self._clock.seconds())
        if ingress is None:
            return None
        return Summary(
            scan_id=run.assignment.scan.scan_id,
            version=__version__,
            complete=not missing,
            ending=self._gate.flaw or ingress.ending,
            missing=missing,
            dropped=[{"indices": each.indices, "reason": each.reason, "at_s": each.at_s} for each in ingress.omitted],
            ledger=books.ledger,
            announced=ingress.announced,
            repaired_pixels=books.repaired,
            updates=books.updates,
            seconds=seconds,
            projections_per_s=books.ledger.used / seconds,
            latency_s={"p50": books.latency.percentile(50), "p99": books.latency.percentile(99)},
            latency_negative=books.latency.negative,
            ranks=run.comm.size,
            threads=run.assignment.threads,
            tunnel=ingress.tunnel(),
            end_to_end="CURVE" if run.assignment.config.stream.curve else None,
            bytes=ingress.bytes_received,
            streams=[[dataclasses.asdict(stream) for stream in streams] for streams in ingress.streams],
            bytes_scattered=int(sent),
            bytes_written=len(volumes) * run.assignment.scan.rows * run.assignment.n**2 * 4,
            stages=self._clock.seconds(),
            stages_per_rank=stages,
            quality=measured or None,
            residuals=books.residuals,
            iterations=books.iterations,
            peak_memory_mib=memory,
            storage=run.writer.way,
            write_hidden_s=run.writer.hidden_s,
            axis=books.axis(),
            warnings=self._gate.book.notices,
            accepted=self._gate.book.accepted,
            failures=self._observers.failures,
            files=[str(path) for path in volumes],
        )

    def _store(self, summary: Summary | None) -> None:
        """Write the summary to the output folder, or to the fallback folder if the volume is there."""
        if summary is None:
            return
        settings = self._run.assignment.config
        try:
            summary.write(settings.output.directory / "summary.json")
        except StorageError as error:
            fallback = settings.output.fallback or settings.checkpoint_folder
            if not fallback.is_dir():
                raise
            _LOG.warning("%s; writing the summary to %s", error, fallback)
            summary.write(fallback / "summary.json")

    def _measured(self, image: NDArray[np.float32]) -> Mapping[str, float]:
        """Quality against the ground truth or the reference, if known."""
        with self._clock.timed("quality"):
            comparison = self._run.comparison
            sums = comparison.sums(image, self._run.shown_at()) if comparison.known else None
        return sums.mean() if sums is not None else {}


def _everywhere(error: StorageError) -> StorageError:
    """The same error marked as raised on every rank."""
    error.everywhere = True
    return error
