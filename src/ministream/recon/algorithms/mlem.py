"""MLEM, with subsets OSEM: x ← x · C Aᵀ (b / A x), C the inverse column sums. For non-negative data and images.

Each subset has its own column sums. One iteration goes through all subsets. Negative line integrals count as 0; rays
that cross no pixel, and pixels outside all projections, remain unchanged. An image that is zero somewhere, as at the
start, is first raised to a small fraction of the mean attenuation, because a multiplicative update keeps zeros.

Shepp & Vardi, IEEE Trans. Med. Imaging 1 (1982) 113; OSEM: Hudson & Larkin, ibid. 13 (1994) 601.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from ministream.recon.algorithms._iterative import Clock, Iterative, Masked
from ministream.recon.algorithms.os_sirt import subsets
from ministream.recon.backend import Image, PerSlice, Progress
from ministream.recon.window import Window

_LIFT = 1e-3
"""Smallest attenuation at the beginning of an update, relative to the mean of the slice."""


class Options(Masked):
    """MLEM's own keys of `[recon]`."""

    subsets: int = Field(default=1, ge=1, description="subsets of the window; 1: MLEM, more: OSEM")


class Algorithm(Iterative[Options]):
    """MLEM or OSEM on a slab."""

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """Make the image positive: an initial value everywhere, or a lower limit for a warm start."""
        mean = self._mean(window)
        self.backend.limit(image, np.where(self.backend.occupied(image), _LIFT * mean, mean))
        self.confine(image)
        self._smallest = (1e-6 * mean).astype(np.float32)

    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """Process every subset once."""
        norm2 = 0.0
        for slots in subsets(window.angles_rad, self.options.subsets):
            beams = self.beams(window, slots)
            with clock.timed("forward"):
                self.backend.clear(self.residual, slots)
                self.backend.forward(image, self.residual, beams, progress=progress)
                norm2 += float(self.backend.divide(self.residual, window.data, beams, self._smallest).sum())
            with clock.timed("back"):
                columns = self.weights.columns if self.options.subsets == 1 else self.weights.columns_of(beams)
                self.backend.back(self.residual, image, beams, factor=columns, multiply=True, progress=progress)
        return norm2

    def _mean(self, window: Window) -> PerSlice:
        """Mean attenuation of each slice: Σ b over Σ ray lengths; 0 for the padding."""
        total = self.backend.positive_sums(window.data, window.held)
        rows = self.weights.rows[: window.held]
        lengths = np.divide(1.0, rows, out=np.zeros(rows.shape), where=rows > 0).sum()
        mean: PerSlice = total / max(lengths, 1.0)
        return mean
