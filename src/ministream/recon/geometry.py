"""The parallel-beam geometry of one slab, and the directions of its projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Slices of n × n pixels seen by `cols` detector columns, pixels and columns of the same size.

    x = column - (n - 1) / 2, y = (n - 1) / 2 - row, and u = x cos(theta) + y sin(theta) + axis_col.
    """

    n: int
    cols: int
    axis_col: float

    def circle(self) -> NDArray[np.bool_]:
        """The pixels [n, n] that every projection sees: the largest circle that fits the slice and the detector.

        For slices wider than the detector: the largest circle that fits the slice.
        """
        seen = self.n / 2 if self.n > self.cols else min(self.axis_col + 0.5, self.cols - 0.5 - self.axis_col)
        radius = min(self.n / 2, seen)
        axis = np.arange(self.n) - (self.n - 1) / 2
        inside: NDArray[np.bool_] = axis[:, None] ** 2 + axis**2 <= radius**2
        return inside


class Beams(NamedTuple):
    """The projections `slots` of a sinogram, with the direction of every projection and the rotation axis."""

    slots: NDArray[np.int64]
    cos: NDArray[np.float64]
    sin: NDArray[np.float64]
    axis_col: float

    @classmethod
    def at(cls, angles_rad: NDArray[np.float64], axis_col: float, slots: NDArray[np.int64] | None = None) -> Self:
        """Projections at `angles_rad`, [projections]; `slots` picks some of them, in any order."""
        chosen = np.arange(len(angles_rad)) if slots is None else np.asarray(slots)
        # projections at similar angles have similar access patterns and share cached data
        ordered = chosen[np.argsort(np.mod(angles_rad[chosen], np.pi), kind="stable")]
        return cls(ordered.astype(np.int64), np.cos(angles_rad), np.sin(angles_rad), float(axis_col))
