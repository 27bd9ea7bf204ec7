"""Checks of the calibration frames: consistent flats, consistent darks, and flats brighter than darks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.model import FrameKind, Notice, notice, ranges

OUTLIER_SIGMA = 5.0
OUTLIER_SHARE = 0.1
"""An outlier differs from the median of its set by this many robust deviations and this fraction of the beam."""
FEWEST = 3

_ROBUST = 1.4826  # median absolute deviation to standard deviation of a normal distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationLevels:
    """For each calibration frame of one kind, [frames]: the mean of all its pixels, its position in the acquisition,
    and whether all its pixels are equal (a constant level instead of an image).
    """

    means: NDArray[np.float64]
    positions: NDArray[np.float64]
    uniform: NDArray[np.bool_]


def late(arrived: Mapping[FrameKind, int], expected: Mapping[FrameKind, int]) -> list[Notice]:
    """The notice about flats and darks that the scan announces and that did not come before the first projection."""
    short = {kind: count for kind, count in expected.items() if arrived[kind] < count}
    if not short:
        return []
    found = " and ".join(f"{arrived[kind]} of {count} {kind.name.lower()}s" for kind, count in short.items())
    numbers = {f"{kind.name.lower()}s": float(arrived[kind]) for kind in short}
    text = (
        f"{found} came before the first projection; later ones are not used, because projections are corrected as they "
        "come. Take all before the projections, or keep them with --archive FILE and reconstruct that file afterwards."
    )
    return [notice("calibration-late", text, numbers=numbers)]


def judge(flats: CalibrationLevels, darks: CalibrationLevels) -> tuple[dict[FrameKind, frozenset[int]], list[Notice]]:
    """Return the flats and darks to exclude, and notices. Raises InputError when flats and darks are swapped."""
    if not flats.means.size:
        return {}, []
    dark = float(np.median(darks.means)) if darks.means.size else 0.0
    flat = float(np.median(flats.means))
    if darks.means.size and flat < dark:
        raise InputError(
            f"the flats (median {flat:.4g}) are darker than the darks (median {dark:.4g}). Flats are images with beam, "
            "darks without: they are swapped. Name them the other way round with source.flats and source.darks"
        )
    beam = flat - dark
    out = {
        FrameKind.FLAT: _outliers(flats, beam),
        FrameKind.DARK: _outliers(darks, beam),
    }
    found = [
        *_left_out("flats", out[FrameKind.FLAT], flats, beam),
        *_left_out("darks", out[FrameKind.DARK], darks, beam),
        *_disagree(flats, out[FrameKind.FLAT], beam),
        *_few(flats),
    ]
    return out, found


def _outliers(levels: CalibrationLevels, beam: float) -> frozenset[int]:
    """The frames of each set (one position) that deviate from the median of the set."""
    out: set[int] = set()
    for position in np.unique(levels.positions):
        members = np.flatnonzero(levels.positions == position)
        apart = np.abs(levels.means[members] - np.median(levels.means[members]))
        limit = max(OUTLIER_SIGMA * _ROBUST * float(np.median(apart)), OUTLIER_SHARE * beam)
        out.update(members[~(apart <= limit)].tolist())
    return frozenset(out)


def _left_out(what: str, out: frozenset[int], levels: CalibrationLevels, beam: float) -> list[Notice]:
    if not out:
        return []
    worst = max(out, key=lambda k: abs(levels.means[k] - np.median(levels.means)))
    return [
        notice(
            f"{what}-outlier",
            f"{len(out)} of {levels.means.size} {what} ({ranges(out)}) differ from the median {what[:-1]} by more than "
            f"{OUTLIER_SHARE:.0%} of the beam and are excluded (mean {levels.means[worst]:.4g}, median "
            f"{np.median(levels.means):.4g}): the shutter or the exposure probably differed.",
            frames=out,
            mean=levels.means[worst],
            median=float(np.median(levels.means)),
            beam=beam,
        )
    ]


def _disagree(flats: CalibrationLevels, out: frozenset[int], beam: float) -> list[Notice]:
    """Detect two halves that differ by more than the outlier limit: the median cannot tell which is correct."""
    for position in np.unique(flats.positions):
        kept = [k for k in np.flatnonzero(flats.positions == position).tolist() if k not in out]
        low, high = float(flats.means[kept].min()), float(flats.means[kept].max())
        if high - low > 2 * OUTLIER_SHARE * beam:
            return [
                notice(
                    "flats-disagree",
                    f"the flats of one set have means from {low:.4g} to {high:.4g}: the beam was not steady, or some "
                    "were taken without it. Name the good ones with source.flats.",
                    low=low,
                    high=high,
                )
            ]
    return []


def _few(flats: CalibrationLevels) -> list[Notice]:
    """Detect too few flats: the noise of a single flat enters every projection; a constant level has no noise."""
    if flats.means.size >= FEWEST or flats.uniform.all():
        return []
    return [
        notice(
            "flats-few",
            f"{flats.means.size} flats, expected {FEWEST} or more: their noise causes ring artefacts. Record more.",
            flats=flats.means.size,
        )
    ]
