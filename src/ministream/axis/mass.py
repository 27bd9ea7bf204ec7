"""The axis from the centre of mass, which moves along a + b cos(theta) + c sin(theta) with a the axis.

This is the Helgason-Ludwig condition of order 1; it holds from any range of angles, for a sample that is inside the
detector in every projection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.axis.symmetry import level_air

LEAST_RANGE_RAD = np.deg2rad(120)
"""Over a shorter range the sinusoid is hardly different from a shift of the axis."""


def from_path(sinogram: NDArray[np.float32], angles_rad: NDArray[np.float64]) -> float:
    """The axis of one detector row, [projections, cols]."""
    level = level_air(sinogram).astype(np.float64)
    middle = (sinogram.shape[1] - 1) / 2
    mass = float(np.median(level.sum(axis=1)))
    moment = level @ (np.arange(sinogram.shape[1]) - middle)
    basis = np.column_stack([np.ones_like(angles_rad), np.cos(angles_rad), np.sin(angles_rad)])
    fitted, *_ = np.linalg.lstsq(basis, moment / mass, rcond=None)
    return float(middle + fitted[0])
