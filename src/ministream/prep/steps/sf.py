"""Stripe removal by a smoothing filter: the mean of each column follows that of its neighbours.

The mean is over the projections in the window, so that it grows with the scan. As TomoPy's `remove_stripe_sf`. For
narrow stripes that are the same in all projections; the sample's own sharp rings about the axis suffer.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream.config import Section
from ministream.prep.steps import SlabFacts


class Options(Section):
    """`[prep.sf]`."""

    size: int = Field(default=5, ge=3, description="columns that the mean is smoothed over")


class Step:
    """Subtracts what the mean differs from its smoothed self by."""

    stage: ClassVar[Literal["projection", "sinogram"]] = "sinogram"
    least = 2

    def __init__(self, options: Options, facts: SlabFacts) -> None:
        self._size = options.size

    def clean(self, sinogram: NDArray[np.float32]) -> NDArray[np.floating]:
        """One sinogram [projections, cols]."""
        mean = sinogram.mean(axis=0, dtype=np.float64)
        before = (self._size - 1) // 2
        padded = np.pad(mean, (before, self._size - 1 - before), mode="edge")
        smooth = np.convolve(padded, np.full(self._size, 1 / self._size), mode="valid")
        cleaned: NDArray[np.floating] = sinogram + (smooth - mean).astype(np.float32)
        return cleaned
