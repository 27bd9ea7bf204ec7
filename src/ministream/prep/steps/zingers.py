"""Pixels that a stray photon hit: brighter than the median of their row neighbours by `threshold` become that median.

The one-dimensional form of the usual median-difference filter (`remove_outlier1d` in TomoPy): a row needs no other row,
so that the result does not depend on the ranks. In flats, what one of at least three shows alone is a zinger.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from ministream.config import Section
from ministream.prep import kernels
from ministream.prep.steps import SlabFacts

_LEAST_FLATS = 3


class Options(Section):
    """`[prep.zingers]`."""

    threshold: float = Field(default=0.2, gt=0, description="excess over the median, in transmissions (air is 1)")
    size: int = Field(default=5, ge=3, le=kernels.MOST_NEIGHBOURS, description="columns of the median, odd")

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(f"expected an odd number, such as {size + 1}")
        return size


class Step:
    """Median-difference filter along the rows."""

    stage: ClassVar[Literal["projection", "sinogram"]] = "projection"

    def __init__(self, options: Options, facts: SlabFacts) -> None:
        self._options = options
        self._lines = np.zeros((2, facts.cols + kernels.MOST_NEIGHBOURS), np.float32)

    def clean_flats(self, flats: NDArray[Any]) -> None:
        """Replace what is in one flat alone by the median of all: its trace would be a ring."""
        if len(flats) < _LEAST_FLATS:
            return
        median = np.median(flats, axis=0)
        hit = flats - median > self._options.threshold * np.median(median)
        flats[hit] = np.broadcast_to(median, flats.shape)[hit].astype(flats.dtype)

    def apply(self, pixels: NDArray[np.float32]) -> int:
        """Replace the outliers; returns their number."""
        return int(kernels.mend_outliers(pixels, self._options.size, np.float32(self._options.threshold), self._lines))
