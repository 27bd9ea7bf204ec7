"""Searches for the rotation axis in the projections of all ranks, and the check of an axis that was given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.assignment import Assignment, is_half_acquisition
from ministream.axis import AxisEstimate, Undecided, finder
from ministream.axis.sinograms import SampledSinograms, sampled_rows
from ministream.model import Notice
from ministream.parallel.mpi import Comm
from ministream.parallel.row_scatter import SlabFrame
from ministream.plausibility import moments
from ministream.recon.window import Window


class AxisSearch:
    """One rank's sampled rows of all projections; all ranks find the same axis. With `keeps` False it holds nothing."""

    def __init__(self, comm: Comm, assignment: Assignment, *, keeps: bool) -> None:
        slab = assignment.slab
        self._comm, self._keeps = comm, keeps
        self._sampled = sampled_rows(assignment.scan.rows)
        self._rows = self._sampled[(self._sampled >= slab.first) & (self._sampled < slab.stop)]
        self._local = self._rows - slab.first
        self._kept = SampledSinograms(self._rows.size, assignment.scan.cols)

    def __len__(self) -> int:
        """Projections so far."""
        return len(self._kept)

    @property
    def possible(self) -> bool:
        """Whether there are projections 180 degrees apart."""
        return finder.possible(self._kept.angles_rad)

    def accepted(self, rows: SlabFrame, slot: NDArray[np.float32]) -> None:
        """Keep the sampled rows of a projection, whose line integrals are `slot` [cols, padded slices]."""
        if self._keeps:
            self._kept.add(rows.index, rows.angle_rad, slot[:, self._local])

    def refill(self, window: Window) -> None:
        """Continue with the projections in the window after a restart."""
        if self._keeps:
            for place, (index, angle_rad) in enumerate(zip(window.indices, window.angles_rad, strict=True)):
                self._kept.add(index, float(angle_rad), window.data[place][:, self._local])

    def find(self, *, last: bool) -> AxisEstimate | Undecided:
        """The axis, as far as the projections tell; `last`: no further ones will come. Collective."""
        kept, total = self._kept, self._comm.sum
        return self._comm.bcast(
            finder.find(kept.pixels, kept.angles_rad, self._rows, self._sampled, last=last, total=total)
        )


class GivenAxis:
    """Compares the axis of a half acquisition, where it was given, with the one that the projections tell.

    Of other scans the centre of mass tells the axis; that of a sample which leaves the detector tells none.
    """

    def __init__(self, comm: Comm, assignment: Assignment) -> None:
        config, scan = assignment.config, assignment.scan
        self._keeps = not config.recon.finds_axis and is_half_acquisition(config, scan, assignment.axis_col)
        self._search, self._cols = AxisSearch(comm, assignment, keeps=self._keeps), scan.cols
        self.accepted, self.refill = self._search.accepted, self._search.refill

    def notices(self, axis_col: float) -> list[Notice]:
        """What is odd about `axis_col`; nothing where the projections do not tell the axis. Collective."""
        if not self._keeps or not self._search.possible:
            return []
        found = self._search.find(last=True)
        if isinstance(found, Undecided):
            return []
        return moments.judge_axis(found.axis_col, found.error_col, self._cols, axis_col)
