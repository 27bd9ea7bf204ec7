"""Consistency of the projections: in parallel beam, a detector row records the same slice from every direction.

The total attenuation of a slice is then the same in every projection, and its centre of mass moves along
a + b cos(theta) + c sin(theta), where a is the rotation axis (the Helgason-Ludwig conditions of order 0 and 1). Rows
and angles that are swapped, angles in the wrong order and a wrong axis break one of them. Both hold only while the
whole sample is in the field of view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ministream.model import Notice, notice

FEWEST_PROJECTIONS = 12
LEAST_COVERAGE_RAD = math.radians(150)
TOTAL_SPREAD = 0.2
"""The total attenuation of a slice may vary by this fraction of its median beyond the noise."""
PATH_SHARE = 0.01
"""The centre of mass may deviate from its sinusoid by this fraction of the columns, by PATH_SIGMA times its noise,
and by PATH_PART of its full movement.
"""
PATH_SIGMA = 4.0
PATH_PART = 0.25
AXIS_SHARE = 0.02
"""The axis may differ from the one used by this fraction of the columns, and by AXIS_SIGMA of its own error."""
LEAST_AXIS_COLS = 1.5
AXIS_SIGMA = 5.0
ROWS_SHARE = 0.01
"""The axis may differ between detector rows, beyond a tilt of LARGEST_TILT_RAD, by this fraction of the columns."""
LARGEST_TILT_RAD = math.radians(1)
LEAST_COLS = 0.5

_ROBUST = 1.4826
_LEAST_MASS = 0.01  # minimum mean line integral of a row that contains a sample


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFits:
    """For each sampled detector row [rows] that contains a sample: its position, the relative variation of its total
    attenuation, the fitted axis column and its standard error, the movement of the centre of mass, and its deviation
    from the sinusoid. `noise`: the parts of spread and deviation explained by noise. Unit: columns unless stated.
    """

    row: NDArray[np.float64]
    spread: NDArray[np.float64]
    spread_noise: NDArray[np.float64]
    axis_col: NDArray[np.float64]
    axis_error: NDArray[np.float64]
    movement: NDArray[np.float64]
    deviation: NDArray[np.float64]
    deviation_noise: NDArray[np.float64]

    def as_array(self) -> NDArray[np.float64]:
        """[rows, fields], for gathering."""
        return np.column_stack([getattr(self, name) for name in RowFits.__slots__])

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> RowFits:
        """The inverse of `as_array`, for the concatenated rows of any number of ranks."""
        return cls(**dict(zip(RowFits.__slots__, rows.T, strict=True)))


def fit(
    angle_rad: NDArray[np.float64],
    total: NDArray[np.float64],
    moment: NDArray[np.float64],
    edge: NDArray[np.float64],
    *,
    rows: NDArray[np.int64],
    cols: int,
    edge_cols: int,
) -> RowFits:
    """Fit each row of `total` = Σ p and `moment` = Σ p (u - (cols - 1) / 2), [projections, rows] each.

    `edge` [projections, rows] are the means of p over `edge_cols` columns of air, used to estimate the noise.
    """
    order = np.argsort(angle_rad, kind="stable")
    theta, total, moment = angle_rad[order], total[order], moment[order]
    air_noise = _ROBUST * np.median(np.abs(np.diff(edge, axis=0)), axis=0) / math.sqrt(2)
    fits = [
        _fit_row(theta, total[:, k], moment[:, k], float(air_noise[k]), edge_cols, cols) for k in range(total.shape[1])
    ]
    kept = [[float(row), *values] for row, values in zip(rows, fits, strict=True) if values is not None]
    return RowFits.of(np.array(kept, np.float64).reshape(-1, len(RowFits.__slots__)))


def _fit_row(
    theta: NDArray[np.float64],
    total: NDArray[np.float64],
    moment: NDArray[np.float64],
    air_noise: float,
    edge_cols: int,
    cols: int,
) -> tuple[float, ...] | None:
    usual = float(np.median(total))
    if usual < _LEAST_MASS * cols:
        return None
    low, high = np.percentile(total, [5, 95])
    # fewer photons arrive behind the sample than in air: relative noise grows with the square root
    noise = air_noise * math.sqrt(edge_cols) * math.exp(usual / cols)
    column = (cols - 1) / 2 + moment / np.maximum(total, 0.1 * usual)
    basis = np.column_stack([np.ones_like(theta), np.cos(theta), np.sin(theta)])
    weights = _inliers(basis, column)
    fitted, *_ = np.linalg.lstsq(basis[weights], column[weights], rcond=None)
    left = column - basis @ fitted
    deviation = _ROBUST * float(np.median(np.abs(left)))
    error = float(np.sqrt(np.linalg.pinv(basis[weights].T @ basis[weights])[0, 0])) * max(deviation, 1e-6)
    # an offset in the air region of a projection may affect every column
    spread = (high - low) / usual, 3.3 * air_noise * math.exp(usual / cols) * cols / usual
    movement = float(np.std(column[weights]))
    return *spread, float(fitted[0]), error, movement, deviation, noise * math.sqrt(cols**3 / 12) / usual


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
    found = _rows_disagree(fits, cols) or _total(fits) or _path(fits, cols)
    return found or _axis(fits, cols, axis_col)


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
    middle = float(np.median(fits.axis_col))
    error = float(np.median(fits.axis_error))
    if abs(middle - axis_col) <= max(AXIS_SHARE * cols, LEAST_AXIS_COLS, AXIS_SIGMA * error):
        return []
    return [
        notice(
            "axis-off",
            f"the sample turns about column {middle:.1f} ± {error:.1f}, the reconstruction uses {axis_col:.1f}. Set "
            f"--set recon.axis={middle:.1f} if the sample is inside the field of view in every projection.",
            fitted_col=middle,
            error_cols=error,
            used_col=axis_col,
        )
    ]
