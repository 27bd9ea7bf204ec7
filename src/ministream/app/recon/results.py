"""What comes out of a job: snapshots and volume, and, on rank 0, every number about it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ministream import __version__, log
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.ingress import Ingress
from ministream.app.recon.reference import ReferenceComparison
from ministream.errors import ConfigError
from ministream.model import Counters, Slab
from ministream.monitor import Latency, Progress, StageClock, Summary, curves, peak_memory_mib, pictures
from ministream.parallel.mpi import Comm
from ministream.parallel.row_scatter import SlabFrame
from ministream.quality import LiveQuality
from ministream.source import truth
from ministream.storage import FINAL, Volume, VolumeState, VolumeWriter, snapshots

_LOG = log.get(__name__)

# 64 MiB: what rank 0 may hold for a picture of the ground truth.
_MOST_TRUTH_VOXELS = 2**24


class Results:
    """Every rank makes one; writing is collective. Only rank 0, the one with an `ingress`, counts and reports."""

    def __init__(
        self, comm: Comm, assignment: Assignment, clock: StageClock, ingress: Ingress | None, console: Console
    ) -> None:
        self._comm, self._assignment, self._clock, self._ingress = comm, assignment, clock, ingress
        self._writer = VolumeWriter(
            comm.dup(),
            assignment.config.output.directory,
            scan=assignment.scan,
            n=assignment.scan.cols,
            slab=assignment.slab,
            axis_col=assignment.axis_col,
            config=assignment.config.as_dict(),
            how=assignment.config.output.writer,
        )
        self._counters = ingress.counters if ingress is not None else Counters()
        self._progress = Progress(assignment.scan.projections, console) if ingress is not None else None
        self._comparison = ReferenceComparison(comm, assignment)
        followed = self._comparison.live and ingress is not None
        self._live = LiveQuality(assignment.config.output.directory / "quality.csv") if followed else None
        self._latency = Latency()
        self.not_yet_in_image: list[float] = []
        self._angles_rad: tuple[float, float] | None = None
        self._started = time.monotonic()
        self._updates = 0
        self._repaired = 0
        self._residuals: list[float] = []
        self._iterations: list[int] = []
        self._files: list[Path] = []

    def accepted(self, rows: SlabFrame, *, new: bool, repaired: int) -> None:
        """One projection is in the window; `new` unless it was there before; `repaired` counts its mended pixels."""
        self._repaired += repaired
        if new:
            self._counters.used += 1
        else:
            self._counters.repeated += 1
        low, high = self._angles_rad or (rows.angle_rad, rows.angle_rad)
        self._angles_rad = min(low, rows.angle_rad), max(high, rows.angle_rad)
        self.not_yet_in_image.append(rows.acquired_s)

    def updated(self, image: NDArray[np.float32], residual_norm2: NDArray[np.float64], iterations: int) -> None:
        """The image contains every accepted projection; write a snapshot if one is due; collective.

        `residual_norm2` is |b - A x|² before each of its iterations, empty for an algorithm that has none.
        """
        self._updates += 1
        now = time.time()
        for acquired_s in self.not_yet_in_image:
            self._latency.record(now - acquired_s)
        behind_s = now - max(self.not_yet_in_image) if self.not_yet_in_image else None
        self.not_yet_in_image.clear()
        self._residuals += [float(norm2) ** 0.5 for norm2 in residual_norm2[-1:]]
        self._iterations.append(iterations)
        if self._progress is not None:
            counters = self._counters
            self._progress.update(
                used=counters.used, received=counters.received, updates=self._updates, behind_s=behind_s
            )
        if self._comparison.live:
            self._follow_quality(image)
        frequency = self._assignment.config.window.write_freq
        with self._clock.timed("write"):
            self._writer.settle()
            if frequency and self._updates % frequency == 0:
                self._files.append(self._writer.snapshot(self._updates, image, self._state(complete=False)))

    def poll(self) -> None:
        """Move on the snapshot that is being written; for a rank that computes or waits."""
        self._writer.poll()

    def close(self) -> None:
        """Leave no half-written file behind."""
        self._writer.close()

    def finish(self, image: NDArray[np.float32], *, scattered: int) -> Summary | None:
        """Write the volume and report; collective. The summary comes back on rank 0.

        `scattered` are the bytes that this rank sent to others.
        """
        if self._progress is not None:
            self._progress.close()
        seconds = time.monotonic() - self._started
        with self._clock.timed("quality"):
            sums = self._comparison.sums(image) if self._comparison.known else None
            measured = sums.mean() if sums is not None else {}
        complete = self._ingress.complete if self._ingress is not None else False
        with self._clock.timed("write"):
            self._files.append(self._writer.final(image, self._state(complete=complete, measured=measured)))
        written = len(self._files) * self._assignment.scan.rows * self._assignment.scan.cols**2 * 4
        memory = self._comm.allgather(peak_memory_mib())
        stages = self._comm.allgather(self._clock.seconds())
        repaired, sent = self._comm.sum(np.array([self._repaired, scattered], np.float64))
        if self._ingress is None:
            return None
        if self._assignment.config.output.pictures:
            with self._clock.timed("pictures"):
                self._files += self._draw()
        summary = Summary(
            scan_id=self._assignment.scan.scan_id,
            version=__version__,
            complete=complete,
            ending=self._ingress.ending,
            counters=self._counters,
            repaired_pixels=int(repaired),
            updates=self._updates,
            seconds=seconds,
            projections_per_s=self._counters.used / seconds,
            latency_s={"p50": self._latency.percentile(50), "p99": self._latency.percentile(99)},
            latency_negative=self._latency.negative,
            ranks=self._comm.size,
            threads=self._assignment.threads,
            tunnel=self._ingress.tunnel(),
            end_to_end="CURVE" if self._assignment.config.stream.curve else None,
            bytes=self._ingress.bytes_received,
            bytes_scattered=int(sent),
            bytes_written=written,
            stages=self._clock.seconds(),
            stages_per_rank=stages,
            quality=measured or None,
            residuals=self._residuals,
            iterations=self._iterations,
            peak_memory_mib=memory,
            storage=self._writer.way,
            write_hidden_s=self._writer.hidden_s,
            files=[str(path) for path in self._files],
        )
        summary.write(self._assignment.config.output.directory / "summary.json")
        return summary

    def _state(self, *, complete: bool, measured: Mapping[str, float] | None = None) -> VolumeState:
        return VolumeState(
            counters=self._counters,
            complete=complete,
            updates=self._updates,
            elapsed_s=time.monotonic() - self._started,
            angles_rad=self._angles_rad,
            quality=measured or {},
        )

    def _follow_quality(self, image: NDArray[np.float32]) -> None:
        with self._clock.timed("quality"):
            sums = self._comparison.sums(image)
            if self._live is not None and sums is not None:
                elapsed_s = time.monotonic() - self._started
                self._live.add(sums, update=self._updates, projections=self._counters.used, seconds=elapsed_s)

    def _whole_truth(self) -> NDArray[np.float32] | None:
        """The ground truth of all slices, where it is known and small enough for rank 0 to hold."""
        scan = self._assignment.scan
        if scan.truth is None or scan.rows * scan.cols**2 > _MOST_TRUTH_VOXELS:
            return None
        return truth(scan, Slab(0, scan.rows))

    def _draw(self) -> list[Path]:
        """Pictures of the volume and of its first slice over time, on rank 0, from the files."""
        directory = self._assignment.config.output.directory
        try:
            with ExitStack() as stack:
                volume = stack.enter_context(Volume(directory / FINAL))
                moments = [stack.enter_context(Volume(path)) for path in snapshots(directory)]
                drawn = [directory / "orthogonal.png", directory / "over-time.png"]
                pictures.orthogonal(volume, drawn[0])
                pictures.over_time([*moments, volume], drawn[1])
                if (ideal := self._whole_truth()) is not None:
                    drawn.append(directory / "truth.png")
                    pictures.against_truth(
                        volume, pictures.Array(path=drawn[-1], values=ideal, attributes=volume.attributes), drawn[-1]
                    )
            if self._live is not None and self._live.rows:
                drawn.append(directory / "quality.png")
                curves.quality(self._live.rows, drawn[-1], str(self._assignment.config.output.reference))
        except ConfigError as error:
            _LOG.warning("no pictures: %s", error)
            return []
        return drawn
