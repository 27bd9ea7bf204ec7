"""Consistency of the projections: in parallel beam, a detector row records the same slice from every direction.

The total attenuation of a slice is then the same in every projection, its centre of mass moves along
a + b cos(theta) + c sin(theta), where a is the rotation axis, and its second moment about the axis along
a + b cos(2 theta) + c sin(2 theta) (the Helgason-Ludwig conditions of order 0, 1 and 2). Rows and angles that are
swapped, angles in the wrong order and a wrong axis break one of them. They hold only while the whole sample is in the
field of view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ministream.model import Notice, notice
from ministream.plausibility.record import Moments

FEWEST_PROJECTIONS = 12
LEAST_COVERAGE_RAD = math.radians(150)
TOTAL_SPREAD = 0.2
"""The total attenuation of a slice may vary by this fraction of its median beyond the noise."""
PATH_SHARE = 0.005
"""The centre of mass may deviate from its sinusoid by this fraction of the columns, by PATH_SIGMA times its noise,
and by PATH_PART of its full movement.
"""
PATH_SIGMA = 4.0
PATH_PART = 0.15
SIZE_SHARE = 0.002
"""The second moment may deviate from its polynomial by this fraction of the squared columns, by PATH_SIGMA times its
noise, and by SIZE_PART of its full variation.
"""
SIZE_PART = 0.1
ORDER_RATIO = 3.0
"""In the order of the angles the first moment may change this many times as much as in the order of arrival."""
AXIS_SHARE = 0.005
"""The axis may differ from the one used by this fraction of the columns, and by AXIS_SIGMA of its own error."""
LEAST_AXIS_COLS = 1.0
AXIS_SIGMA = 5.0
ROWS_SHARE = 0.005
"""The axis may differ between detector rows, beyond a tilt of LARGEST_TILT_RAD, by this fraction of the columns."""
LARGEST_TILT_RAD = math.radians(1)
LEAST_COLS = 0.5

_ROBUST, _NORMAL_90 = 1.4826, 1.6449  # median and 90th percentile of |x| to the standard deviation of a normal x
_LEAST_JUMP = 1e-4  # of the columns: what the centre of mass moves at least between two projections
_LEAST_MASS = 0.01  # minimum mean line integral of a row that contains a sample


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFits:
    """For each sampled detector row [rows] that contains a sample: its position, the relative variation of its total
    attenuation, the fitted axis column and its standard error, the movement of the centre of mass, and its deviation
    from the sinusoid; variation and deviation of the second moment, in squared columns; and how many times as much the
    first moment changes between neighbours in angle as between successive projections. `noise`: the parts of spread and
    deviations explained by noise. Unit: columns unless stated.
    """

    row: NDArray[np.float64]
    spread: NDArray[np.float64]
    spread_noise: NDArray[np.float64]
    axis_col: NDArray[np.float64]
    axis_error: NDArray[np.float64]
    movement: NDArray[np.float64]
    deviation: NDArray[np.float64]
    deviation_noise: NDArray[np.float64]
    size_variation: NDArray[np.float64]
    size_deviation: NDArray[np.float64]
    size_noise: NDArray[np.float64]
    order_ratio: NDArray[np.float64]

    def as_array(self) -> NDArray[np.float64]:
        """[rows, fields], for gathering."""
        return np.column_stack([getattr(self, name) for name in RowFits.__slots__])

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> RowFits:
        """The inverse of `as_array`, for the concatenated rows of any number of ranks."""
        return cls(**dict(zip(RowFits.__slots__, rows.T, strict=True)))


def fit(moments: Moments, *, rows: NDArray[np.int64], cols: int, edge_cols: int) -> RowFits:
    """Fit each row; the edges of the projections, means over `edge_cols` columns of air, tell the noise."""
    order = np.argsort(moments.angle_rad, kind="stable")
    beam_noise = _jump(np.minimum(moments.left, moments.right)[order]) / math.sqrt(2)
    theta = moments.angle_rad[order]
    total, first, second = (values[order].T for values in (moments.total, moments.first, moments.second))
    each = zip(total, first, second, beam_noise.tolist(), pixel_noise(moments, edge_cols).tolist(), strict=True)
    fits = [_fit_row(theta, *row, cols) for row in each]
    least = _LEAST_JUMP * cols * np.maximum(np.median(moments.total, axis=0), 1.0)
    ratios = _jump(moments.first[order]) / np.maximum(_jump(moments.first), least)
    found = zip(rows, fits, ratios, strict=True)
    kept = [[float(row), *values, ratio] for row, values, ratio in found if values is not None]
    return RowFits.of(np.array(kept, np.float64).reshape(-1, len(RowFits.__slots__)))


def pixel_noise(moments: Moments, edge_cols: int) -> NDArray[np.float64]:
    """The noise of the line integrals of air, [rows], from edges of `edge_cols` columns; what both edges share is none.

    Neighbours in time are compared: a sample at an edge turns on slowly.
    """
    return _jump(moments.left - moments.right) / 2 * math.sqrt(edge_cols)


def _jump(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard deviation of the differences between successive rows of `values`, robust against outliers."""
    if len(values) < 2:
        return np.zeros(values.shape[1])
    deviation: NDArray[np.float64] = _ROBUST * np.median(np.abs(np.diff(values, axis=0)), axis=0)
    return deviation


def _fit_row(
    theta: NDArray[np.float64],
    total: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    beam_noise: float,
    air_noise: float,
    cols: int,
) -> tuple[float, ...] | None:
    usual = float(np.median(total))
    if usual < _LEAST_MASS * cols:
        return None
    low, high = np.percentile(total, [5, 95])
    # fewer photons arrive behind the sample than in air: relative noise grows with the square root
    behind = math.exp(usual / cols)
    # an offset in the air region of a projection may affect every column
    spread = (high - low) / usual, 3.3 * beam_noise * behind * cols / usual
    # a total that varies comes from the beam, an offset of all columns, or from a sample that changes
    mass = np.maximum(total, 0.1 * usual)
    basis = np.column_stack([np.ones_like(theta), np.cos(theta), np.sin(theta)])
    path = min((_fitted(basis, values) for values in (first / usual, first / mass)), key=lambda fitted: fitted[3])
    middle, error, movement, deviation = path
    # about the axis the second moment has terms of degree 2 alone
    basis = np.column_stack([np.ones_like(theta), np.cos(2 * theta), np.sin(2 * theta)])
    about_axis = second - 2 * middle * first + middle**2 * total
    offset = (total - usual) * ((cols**2 - 1) / 12 + middle**2)
    sizes = ((about_axis - offset) / usual, about_axis / mass)
    size = min((_fitted(basis, values)[2:] for values in sizes), key=lambda fitted: fitted[1])
    noise = air_noise * behind / usual
    return (
        *spread,
        *((cols - 1) / 2 + middle, error, movement, deviation, noise * math.sqrt(cols**3 / 12)),
        *(*size, noise * math.sqrt(cols**5 / 180)),
    )


def _fitted(basis: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """The constant part of a fit and its standard error, the variation of the values, and their deviation from it."""
    kept = _inliers(basis, values)
    fitted, *_ = np.linalg.lstsq(basis[kept], values[kept], rcond=None)
    left = np.abs(values - basis @ fitted)
    # of normal noise both are the standard deviation; the second one sees a fault of a part of the projections
    deviation = max(_ROBUST * float(np.median(left)), float(np.percentile(left, 90)) / _NORMAL_90)
    error = float(np.sqrt(np.linalg.pinv(basis[kept].T @ basis[kept])[0, 0])) * max(deviation, 1e-6)
    return float(fitted[0]), error, float(np.std(values[kept])), deviation


def _inliers(basis: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.bool_]:
    fitted, *_ = np.linalg.lstsq(basis, column, rcond=None)
    left = np.abs(column - basis @ fitted)
    kept: NDArray[np.bool_] = left <= 4 * max(_ROBUST * float(np.median(left)), 1e-9)
    return kept if np.count_nonzero(kept) >= FEWEST_PROJECTIONS else np.ones(column.size, bool)


def applicable(angle_rad: NDArray[np.float64]) -> bool:
    """Whether number and coverage of the projections are sufficient to fit an axis to a sinusoid."""
    return angle_rad.size >= FEWEST_PROJECTIONS and float(np.ptp(angle_rad)) >= LEAST_COVERAGE_RAD


def judge(fits: RowFits, *, cols: int, axis_col: float) -> list[Notice]:
    """Evaluate the fits of all rows by their median; returns notices."""
    if not fits.row.size:
        return []
    found = _rows_disagree(fits, cols) or _total(fits) or _path(fits, cols) or _size(fits, cols) or judge_order(fits)
    return found or _axis(fits, cols, axis_col)


def judge_order(fits: RowFits) -> list[Notice]:
    """Check that neighbours in angle are alike, also where the sample reaches beyond the detector; returns notices.

    What was recorded in another order than that of the angles differs more from one projection to the next.
    """
    ratio = float(np.median(fits.order_ratio)) if fits.row.size else 0.0
    if ratio <= ORDER_RATIO:
        return []
    return [
        notice(
            "angles-order",
            f"from one angle to the next the images change {ratio:.3g} times as much as from one projection to the "
            "next: the angles belong to other projections. Check source.theta.",
            ratio=ratio,
        )
    ]


def _total(fits: RowFits) -> list[Notice]:
    spread, noise = float(np.median(fits.spread)), float(np.median(fits.spread_noise))
    if spread - noise <= TOTAL_SPREAD:
        return []
    return [
        notice(
            "attenuation-varies",
            f"the total attenuation of a slice varies by {spread:.0%} over the projections, noise explains "
            f"{noise:.0%}: for one sample it is constant. Rows and angles of the dataset may be swapped (--set "
            "source.axes=y:theta:x reads them so), the beam not steady, or the values not line integrals.",
            spread=spread,
            noise=noise,
        )
    ]


def _path(fits: RowFits, cols: int) -> list[Notice]:
    deviation, noise = float(np.median(fits.deviation)), float(np.median(fits.deviation_noise))
    movement = float(np.median(fits.movement))
    if deviation <= max(PATH_SHARE * cols, LEAST_COLS, PATH_SIGMA * noise, PATH_PART * movement):
        return []
    return [
        notice(
            "centre-of-mass",
            f"the centre of mass is {deviation:.3g} columns off the sinusoid of a rotating sample, noise "
            f"explains {noise:.2g}: the order or unit of the angles is wrong, or the sample moved. Check "
            "source.theta and source.angle_unit.",
            deviation_cols=deviation,
            noise_cols=noise,
        )
    ]


def _size(fits: RowFits, cols: int) -> list[Notice]:
    deviation, noise = float(np.median(fits.size_deviation)), float(np.median(fits.size_noise))
    variation = float(np.median(fits.size_variation))
    if deviation <= max(SIZE_SHARE * cols**2, PATH_SIGMA * noise, SIZE_PART * variation):
        return []
    return [
        notice(
            "second-moment",
            f"the width of the sample does not follow its rotation: its second moment is {deviation:.3g} squared "
            f"columns off, of a variation of {variation:.3g}, noise explains {noise:.2g}. The order or unit of the "
            "angles is wrong, projections are missing, or the sample changed. Check source.theta and "
            "source.angle_unit.",
            deviation=deviation,
            noise=noise,
            variation=variation,
        )
    ]


def _rows_disagree(fits: RowFits, cols: int) -> list[Notice]:
    """Detect swapped rows and angles: real rows share one rotation axis, swapped ones each have a different axis."""
    if fits.row.size < 4:
        return []
    tilt = np.clip(np.polyfit(fits.row, fits.axis_col, 1)[0], -LARGEST_TILT_RAD, LARGEST_TILT_RAD)
    apart = float(np.std(fits.axis_col - tilt * fits.row))
    error = float(np.median(np.hypot(fits.axis_error, fits.deviation_noise / math.sqrt(FEWEST_PROJECTIONS))))
    if apart <= max(ROWS_SHARE * cols, LEAST_COLS, AXIS_SIGMA * error):
        return []
    return [
        notice(
            "rows-disagree",
            f"the detector rows turn about axes that differ by {apart:.3g} columns: rows and angles of the dataset are "
            "probably swapped. Read them so with --set source.axes=y:theta:x.",
            apart_cols=apart,
        )
    ]


def _axis(fits: RowFits, cols: int, axis_col: float) -> list[Notice]:
    return judge_axis(float(np.median(fits.axis_col)), float(np.median(fits.axis_error)), cols, axis_col)


def judge_axis(found_col: float, error_col: float, cols: int, axis_col: float) -> list[Notice]:
    """Compare the axis that the projections tell, with its standard error, with the one in use; returns notices."""
    if abs(found_col - axis_col) <= max(AXIS_SHARE * cols, LEAST_AXIS_COLS, AXIS_SIGMA * error_col):
        return []
    return [
        notice(
            "axis-off",
            f"the sample turns about column {found_col:.1f} ± {error_col:.1f}, the reconstruction uses {axis_col:.1f}. "
            f"Set --set recon.axis={found_col:.1f}, or --accept axis-off if the axis was measured in another way.",
            fitted_col=found_col,
            error_cols=error_col,
            used_col=axis_col,
        )
    ]
