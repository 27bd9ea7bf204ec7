"""Row and column sums of the matrix that the window holds, kept up to date as projections come and go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.recon import kernels
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window

_NEGLIGIBLE = 1e-3
"""Sums below this (a pixel's width is 1) count as not seen at all."""


class Weights:
    """SIRT's R and C: the inverse row sums [length, cols] and the inverse column sums [n, n] of the window's A.

    `support` [n, n] limits the image: pixels outside take no part in the row sums and have no column weight.
    A sum that is zero has weight zero.
    """

    def __init__(self, geometry: Geometry, length: int, support: NDArray[np.bool_] | None = None) -> None:
        n = geometry.n
        self._geometry = geometry
        self._support = np.ones((n, n), bool) if support is None else support
        self._column_sums = np.zeros((n, n))
        self._stamps = np.zeros(length, dtype=np.int64)
        self._angles_rad = np.zeros(length)
        self.rows = np.zeros((length, geometry.cols), np.float32)
        self.columns = np.zeros((n, n), np.float32)

    def update(self, window: Window) -> None:
        """Take in what is new in the window and take out what has left."""
        stamps = np.zeros_like(self._stamps)
        stamps[: window.held] = window.stamps
        changed = np.flatnonzero(stamps != self._stamps)
        if not changed.size:
            return
        gone = changed[self._stamps[changed] != 0]
        if changed.size == window.held:
            self._column_sums[:] = 0  # everything is new: start without the rounding of the past
        elif gone.size:
            self._column_sums -= self.seen(self._beams(gone))
        self._angles_rad[: window.held] = window.angles_rad
        self._stamps = stamps
        new = self._beams(changed)
        self._column_sums += self.seen(new)
        self.rows[new.slots] = inverse(kernels.row_sums(new, self._support, self._geometry.cols))
        self.columns[:] = inverse(self._column_sums) * self._support

    def seen(self, beams: kernels.Beams) -> NDArray[np.float64]:
        """Column sums of the projections of `beams` alone, [n, n]."""
        return kernels.column_sums(beams, self._geometry.n, self._geometry.cols)

    def _beams(self, slots: NDArray[np.int64]) -> kernels.Beams:
        return kernels.Beams.at(self._angles_rad, self._geometry.axis_col, slots)


def inverse(sums: NDArray[np.floating]) -> NDArray[np.float32]:
    """1 / sums, and 0 where nothing was seen."""
    seen = sums > _NEGLIGIBLE
    result = np.divide(1.0, sums, out=np.zeros(sums.shape), where=seen)
    single: NDArray[np.float32] = result.astype(np.float32)
    return single
