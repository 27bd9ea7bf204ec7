"""Pictures of the volume and of its first slice over time, drawn at the end, on rank 0, from the files."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.observing import Quiet, Run, VolumeWritten
from ministream.model import Scan, Slab, to_per_cm
from ministream.monitor import pictures
from ministream.source import truth
from ministream.storage import Volume, snapshots

# 64 MiB: limit on rank 0 for the ground truth of a picture.
_MOST_TRUTH_VOXELS = 2**24


class DrawPictures(Quiet):
    """Draws after the volume is written; lists each picture that was written."""

    stage = "pictures"

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._scan, self._directory = run.assignment.scan, run.assignment.config.output.directory
        self._n, self._shown_at = run.assignment.n, run.shown_at

    def started(self) -> None:
        """Load the library while nothing else is to do."""
        pictures.load()

    def finished(self, written: VolumeWritten) -> None:
        """Draw all of them."""
        with ExitStack() as stack:
            volume = stack.enter_context(Volume(written.volume))
            moments = [stack.enter_context(Volume(path)) for path in snapshots(self._directory)]
            self._draw("orthogonal.png", partial(pictures.orthogonal, volume))
            self._draw("over-time.png", partial(pictures.over_time, [*moments, volume]))
            ideal = _whole_truth(self._scan, self._n, self._shown_at())
            if ideal is not None:
                per_cm = np.float32(to_per_cm(self._scan.pixel_size_um))
                known = pictures.Array(
                    path=self._directory / "truth.png", values=ideal * per_cm, attributes=volume.attributes
                )
                self._draw("truth.png", partial(pictures.against_truth, volume, known))

    def _draw(self, name: str, draw: partial[None]) -> None:
        path: Path = self._directory / name
        draw(path)
        self._files.append(path)


def _whole_truth(scan: Scan, n: int, at: float) -> NDArray[np.float32] | None:
    """The ground truth of all slices, if it is known and fits the memory limit on rank 0."""
    if scan.truth is None or scan.rows * n**2 > _MOST_TRUTH_VOXELS:
        return None
    return truth(scan, Slab(0, scan.rows), n=n, at=at)


def observe(run: Run) -> DrawPictures | None:
    """An instance on rank 0, unless `[output] pictures` is false."""
    return DrawPictures(run) if run.assignment.config.output.pictures and run.comm.rank == 0 else None
