"""Which method applies to the projections so far, and whether its answer can be believed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ministream.axis import AxisEstimate, Total, Undecided, mass, symmetry
from ministream.axis.directions import MirrorPairs, half_turn, mirror_pairs

METHODS = ("pairs", "half turn", "seam", "centre of mass")
"""Opposite projections; smoothness of half a turn and its mirror image, everywhere or where they meet; the path of
the centre of mass.
"""
LEAST_CONFIDENCE = 0.6
MOST_ERROR_COL = 0.3
AGREE_COLS = 1.0
"""A row confirms the axis where its own is as near as this."""
COARSE_COLS = 4.0
LEAST_LEVEL = 0.005
"""A row with a smaller mean line integral holds no sample."""
CUT_SHARE = 0.05
"""The sample reaches beyond the detector where the edges are above this share of the rows' largest line integrals."""
FEWEST_FOR_TILT = 4
SHARP_COL = 0.1
"""The seam is preferred to the whole half turn where its rows differ by no more."""

_LARGEST = 98  # percentile: above it may be zingers
_ROBUST = 1.4826
_MANY_PAIRS = 8
_SHARE_OF_PAIRS = 1 / 16


def possible(angles_rad: NDArray[np.float64]) -> bool:
    """Whether the projections include a pair 180 degrees apart."""
    return mirror_pairs(angles_rad).count > 0


def find(
    sinograms: NDArray[np.float32],
    angles_rad: NDArray[np.float64],
    rows: NDArray[np.intp],
    sampled: NDArray[np.intp],
    *,
    last: bool,
    total: Total,
) -> AxisEstimate | Undecided:
    """The axis from this rank's sinograms [rows, projections, cols], line integrals; collective.

    `rows` are their detector rows, `sampled` those of all ranks. `last`: no further projections will come.
    """
    holds = sinograms.mean(axis=(1, 2)) > LEAST_LEVEL if rows.size else np.zeros(0, bool)
    search = _Search(sinograms[holds], angles_rad, total)
    here = np.isin(sampled, rows[holds])
    count = int(total(np.array([float(np.count_nonzero(here))]))[0])
    if not count:
        return Undecided(reason="no detector row that was looked at holds a sample", waiting=not last)
    found = search.by_best_method(last=last)
    if isinstance(found, Undecided):
        return found
    table = np.zeros((3, sampled.size))
    table[:, here] = found.rows, found.coarse, np.ones(found.rows.size)
    each, coarse, told = total(table.ravel()).reshape(3, -1)
    kept = told > 0
    whole = found._replace(rows=each[kept], coarse=coarse[kept])
    return _believed(whole, sampled[kept], angles_rad.size, last=last)


class _Found(NamedTuple):
    """An axis from all rows; `rows`: that of each row; `coarse`: by how far each deviates in the search over the whole
    detector; `doubt_col`: the error that two ways to compute it suggest.
    """

    axis_col: float
    rows: NDArray[np.float64]
    method: str
    coarse: NDArray[np.float64]
    doubt_col: float = 0.0


class _Search:
    """One search in the rows that hold a sample, [rows, projections, cols]."""

    def __init__(self, sinograms: NDArray[np.float32], angles_rad: NDArray[np.float64], total: Total) -> None:
        self._sinograms, self._angles_rad, self._total = sinograms, angles_rad, total

    def by_best_method(self, *, last: bool) -> _Found | Undecided:
        """The axis by the method that these projections allow."""
        cut = self._cut()
        pairs = mirror_pairs(self._angles_rad)
        turned = half_turn(self._angles_rad)
        many = pairs.count >= max(_MANY_PAIRS, _SHARE_OF_PAIRS * self._angles_rad.size)
        if turned is not None and not many:
            return self._from_half_turn(_evenly(self._sinograms, *turned), pairs if cut else None)
        if pairs.count:
            near, rows, _ = symmetry.overlap(self._sinograms, pairs, self._total)
            fit = symmetry.from_pairs(self._sinograms, pairs, near, self._total)
            return _Found(fit.axis_col, fit.rows, "pairs", rows - near)
        if not last:
            return Undecided(reason="no two projections are 180 degrees apart yet", waiting=True)
        return self._from_path(cut)

    def _from_half_turn(self, even: NDArray[np.float32], pairs: MirrorPairs | None) -> _Found:
        """From half a turn; `pairs` for the rough search where the sample reaches beyond the detector."""
        if pairs is None:
            near, rows, _ = symmetry.from_half_turn(even, self._total)
        else:
            near, rows, _ = symmetry.overlap(self._sinograms, pairs, self._total)
        whole = _Found(near, rows, "half turn", np.zeros(rows.size)) if pairs is None else None
        fits = {last: self._seam(even[:, :last], near) for last in (even.shape[1], even.shape[1] - 1)}
        # angles that end a step too early are frequent: the last projection then repeats the first
        last, fit = min(fits.items(), key=lambda item: item[1].residual)
        seam = _Found(fit.axis_col, fit.rows, "seam", rows - near)
        if whole is not None:
            seam = seam._replace(doubt_col=abs(fit.axis_col - near) / 2)
            return seam if self._sharp(seam) else whole
        narrow = self._seam(even[:, :last], near, wide=False)
        return seam._replace(doubt_col=abs(fit.axis_col - narrow.axis_col))

    def _seam(self, even: NDArray[np.float32], near: float, *, wide: bool = True) -> symmetry.Fit:
        return symmetry.from_seam(even, near, symmetry.SEAM_WEDGES[wide], self._total)

    def _sharp(self, seam: _Found) -> bool:
        """Whether the seam tells more than the whole half turn: noise spoils it first, the level of the air never."""
        off = seam.rows - seam.axis_col
        count, square = self._total(np.array([float(off.size), float((off**2).sum())]))
        return seam.doubt_col <= AGREE_COLS and square <= SHARP_COL**2 * count

    def _from_path(self, cut: bool) -> _Found | Undecided:
        range_deg = float(np.rad2deg(np.ptp(self._angles_rad)))
        short = f"the angles span {range_deg:.4g} degrees, so no two projections are 180 degrees apart"
        if cut:
            return Undecided(reason=f"{short}, and the sample reaches beyond the detector")
        if np.ptp(self._angles_rad) < mass.LEAST_RANGE_RAD:
            return Undecided(reason=short)
        rows = np.array([mass.from_path(sinogram, self._angles_rad) for sinogram in self._sinograms])
        count, level = self._total(np.array([float(rows.size), float(rows.sum())]))
        return _Found(float(level / count), rows, "centre of mass", np.zeros(rows.size))

    def _cut(self) -> bool:
        """Whether the sample reaches beyond the detector, in any projection."""
        edge = symmetry.edge_cols(self._sinograms.shape[2])
        edges = np.abs([self._sinograms[:, :, :edge].mean(axis=2), self._sinograms[:, :, -edge:].mean(axis=2)])
        largest = np.percentile(self._sinograms, _LARGEST, axis=(1, 2)) if len(self._sinograms) else np.zeros(0)
        worst, peak = self._total(np.array([float(edges.max(axis=(0, 2), initial=0.0).sum()), float(largest.sum())]))
        return bool(worst > CUT_SHARE * peak)


def _evenly(
    sinograms: NDArray[np.float32], order: NDArray[np.intp], positions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The projections in `order`, interpolated where their steps are uneven."""
    ordered = sinograms[:, order]
    before = np.minimum(positions.astype(np.intp), order.size - 2)
    weight = (positions - before)[:, None]
    if not np.mod(weight, 1).any():
        return ordered
    between: NDArray[np.float32] = (1 - weight) * ordered[:, before] + weight * ordered[:, before + 1]
    return between


def _believed(found: _Found, rows: NDArray[np.intp], projections: int, *, last: bool) -> AxisEstimate | Undecided:
    """The estimate, if the rows agree."""
    along = rows - float(rows.mean())
    slope = _slope(rows, found.rows)
    left = found.rows - found.axis_col - slope * along
    agree = (np.abs(left) <= AGREE_COLS) & (np.abs(found.coarse) <= COARSE_COLS)
    spread = _spread(left)
    error = max(spread / math.sqrt(rows.size), symmetry.FINE_COL)
    estimate = AxisEstimate(
        axis_col=found.axis_col,
        method=found.method,
        error_col=math.hypot(error, found.doubt_col),
        spread_col=spread,
        confidence=float(agree.mean()),
        tilt_deg=math.degrees(math.atan(slope)),
        tilt_error_deg=math.degrees(error / max(float(np.std(along)), 1.0)),
        rows=rows.size,
        projections=projections,
    )
    if rows.size < 2:
        return Undecided(reason="a single detector row holds a sample, and nothing confirms its axis", waiting=not last)
    if estimate.confidence < LEAST_CONFIDENCE or estimate.error_col > MOST_ERROR_COL:
        return Undecided(
            reason=f"the axis is uncertain: {estimate}; required are a confidence of {LEAST_CONFIDENCE:.0%} and an "
            f"error of at most {MOST_ERROR_COL:g} columns",
            waiting=not last,
        )
    return estimate


def _slope(rows: NDArray[np.intp], cols: NDArray[np.float64]) -> float:
    """Columns per row: the median of the slopes between any two rows (Theil-Sen)."""
    if rows.size < FEWEST_FOR_TILT:
        return 0.0
    first, second = np.triu_indices(rows.size, 1)
    return float(np.median((cols[second] - cols[first]) / (rows[second] - rows[first])))


def _spread(left: NDArray[np.float64]) -> float:
    """The standard deviation, not led by the few rows that are wrong."""
    if left.size < FEWEST_FOR_TILT:
        return float(np.sqrt(np.mean(left**2)))
    return _ROBUST * float(np.median(np.abs(left - np.median(left))))
