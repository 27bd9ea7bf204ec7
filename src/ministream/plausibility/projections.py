"""Checks of the projections: written, not blocked, not saturated, sample inside the field of view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.model import Notice, notice, ranges
from ministream.plausibility.record import ProjectionTable, SkippedProjection
from ministream.plausibility.remedies import exclude

BLOCKED_JUMP = 0.7
"""A view is blocked where its mean line integral rises by this much from one direction to the next: half the light."""
SATURATED_SHARE = 0.01
BRIGHT = 0.1
BRIGHT_SHARE = 0.02
NOISE_MARGIN = 1.5
"""This fraction of the pixels may have a line integral below -BRIGHT, besides what noise explains, times a margin."""
AIR_TOLERANCE = 0.05
EDGE_SHARE = 0.15
"""A sample with this fraction of its mean line integral at the detector's edge extends beyond the edge."""
ONE_SIDED = 0.5
"""The fractions of projections that are cut on the left and on the right may differ by this much."""
HALF_ACQUISITION_EDGE = 0.75
"""In a half acquisition an edge of the detector sees this fraction of the mean line integral, or more."""
FULL_TURN_LEAST_RAD = np.radians(350)
STARVED_SHARE = 0.05
MOST_REPEATED = 0.8
"""More projections like the one before than this fraction come from a sample that looks the same from all sides."""

BLANK_CODE = "rows-unwritten"
"""A scan with this notice is not complete unless the user accepts it."""

_PROBE = 64


def never_written(pixels: NDArray[Any]) -> str | None:
    """Why a projection [rows, cols] is not an image: all its pixels are equal, as in a file that was never written.
    None for an image; this case is fast, because it reads the first pixels only.
    """
    first, middle = pixels[0, 0], pixels[pixels.shape[0] // 2]
    if not (_all(pixels[0, :_PROBE], first) and _all(middle, first) and _all(pixels, first)):
        return None
    return f"all its pixels are {first}: it was probably never written"


def _all(pixels: NDArray[Any], value: Any) -> bool:
    same = np.isnan(pixels) if np.isnan(value) else pixels == value
    return bool(same.all())


def lost(indices: Sequence[int]) -> list[Notice]:
    """The notice about the projections that were lost before they reached the producer."""
    if not indices:
        return []
    return [
        notice(
            "projections-lost",
            f"{len(indices)} projections ({ranges(indices)}) were lost before they reached the producer: the detector "
            "or the network dropped images, or the scan ended early. Acquire more slowly, or raise source.queue.",
            frames=indices,
        )
    ]


def unwritten(skipped: Sequence[SkippedProjection]) -> list[Notice]:
    """The notice about the projections without image data, found by `never_written`."""
    if not skipped:
        return []
    indices = [one.index for one in skipped]
    excluding = exclude(np.array([one.position for one in skipped]))
    return [
        notice(
            "projections-unwritten",
            f"{len(indices)} projections ({ranges(indices)}) are constant (one value in all pixels) and are skipped: "
            "the scan was probably aborted, the detector lost them, or the beam was blocked. If the others are enough, "
            f"exclude them with {excluding}.",
            frames=indices,
        )
    ]


def blocked(table: ProjectionTable) -> NDArray[np.bool_]:
    """Which projections [projections] are far darker than those of neighbouring directions.

    A blocked sequence begins and ends with a jump; a thick sample causes a gradual change.
    """
    order = np.argsort(table.angle_rad, kind="stable")
    mean = table.mean[order]
    usual = float(np.median(mean))
    spread = 1.4826 * float(np.median(np.abs(mean - usual)))
    dark = mean > usual + max(BLOCKED_JUMP, 5 * spread)
    edges = np.flatnonzero(np.diff(np.r_[False, dark, False].astype(np.int8)))
    for first, stop in edges.reshape(-1, 2):
        before = mean[first] - mean[first - 1] if first else np.inf
        after = mean[stop - 1] - mean[stop] if stop < mean.size else np.inf
        dark[first:stop] = min(before, after) > BLOCKED_JUMP
    result = np.zeros(mean.size, bool)
    result[order] = dark
    return result


def judge(table: ProjectionTable, *, minus_log: bool, noise: float) -> list[Notice]:
    """Check the projections of a scan; returns notices. `minus_log`: the logarithm was taken by this program; `noise`:
    the standard deviation of the line integrals of air.
    """
    if not len(table):
        return []
    dark = blocked(table)
    seen = table.only(~dark) if not dark.all() else table
    bright = _bright(seen, noise) if minus_log else []
    return [*_blank_rows(table), *_repeats(table), *_blocked(table, dark), *_saturated(table), *bright, *_edges(seen)]


def _blank_rows(table: ProjectionTable) -> list[Notice]:
    blank = table.only(table.blank_rows > 0)
    if not len(blank):
        return []
    return [
        notice(
            BLANK_CODE,
            f"{len(blank)} of {len(table)} projections ({ranges(blank.index)}) have detector rows in which all pixels "
            f"are equal, up to {blank.blank_rows.max()} rows: parts of these images were never written, or were lost. "
            f"Exclude them with {exclude(blank.position)}.",
            frames=blank.index,
            rows=int(blank.blank_rows.max()),
        )
    ]


def _repeats(table: ProjectionTable) -> list[Notice]:
    """Noise makes every image unique; a sample that looks the same from all sides, without noise, is no fault."""
    repeated = table.only(table.repeats)
    if not len(repeated) or len(repeated) > MOST_REPEATED * len(table):
        return []
    return [
        notice(
            "projections-repeated",
            f"{len(repeated)} of {len(table)} projections ({ranges(repeated.index)}) are exactly the image before: the "
            f"detector or its driver sent an image again in place of a new one. Exclude them with "
            f"{exclude(repeated.position)}.",
            frames=repeated.index,
            share=len(repeated) / len(table),
        )
    ]


def _blocked(table: ProjectionTable, dark: NDArray[np.bool_]) -> list[Notice]:
    if not dark.any():
        return []
    frames = table.index[dark].tolist()
    extra = float(np.median(table.mean[dark]) - np.median(table.mean[~dark])) if (~dark).any() else 0.0
    return [
        notice(
            "views-blocked",
            f"{len(frames)} of {len(table)} projections ({ranges(frames)}) transmit {np.exp(-extra):.1%} of the "
            f"light of the others: an object blocked the beam. Exclude them with {exclude(table.position[dark])}.",
            frames=frames,
            transmission=float(np.exp(-extra)),
        )
    ]


def _saturated(table: ProjectionTable) -> list[Notice]:
    share = float(table.saturated.mean())
    if share <= SATURATED_SHARE:
        return []
    frames = table.index[table.saturated > SATURATED_SHARE].tolist()
    return [
        notice(
            "pixels-saturated",
            f"{share:.1%} of the pixels are at the largest value of their dtype, in {len(frames)} projections "
            f"({ranges(frames)}): line integrals there are wrong. Reduce the exposure time.",
            frames=frames,
            share=share,
        )
    ]


def _bright(table: ProjectionTable, noise: float) -> list[Notice]:
    share = float(table.bright.mean())
    # photon noise makes pixels of air brighter than the flat
    by_noise = math.erfc(BRIGHT / (noise * math.sqrt(2))) / 2 if noise > 0 else 0.0
    if share <= BRIGHT_SHARE + NOISE_MARGIN * by_noise:
        return []
    worst = float(np.exp(-min(table.left.min(), table.right.min(), table.mean.min())))
    return [
        notice(
            "transmission-above-1",
            f"{share:.1%} of the pixels are brighter than the flat by more than 10 % (up to {worst:.3g} times at the "
            f"detector's edges), noise explains {by_noise:.1%}: the flats are of another exposure, show the sample, or "
            "flats and projections are swapped. Name the right ones with source.flats.",
            share=share,
            noise=by_noise,
            largest=worst,
        )
    ]


def _edges(table: ProjectionTable) -> list[Notice]:
    """Air at the edges has line integral 0. A common offset of both edges comes from the beam if it changes with
    time or is bright, else from the sample.
    """
    both = np.minimum(table.left, table.right)
    apart = float(np.median(np.abs(table.left - table.right)))
    low, high = (float(value) for value in np.percentile(both, [5, 95]))
    largest = max(abs(low), abs(high))
    changes = high - low > max(AIR_TOLERANCE, 0.25 * largest)
    if largest > AIR_TOLERANCE and apart < 0.25 * largest and (changes or low < 0):
        return [
            notice(
                "air-not-zero",
                f"air at the detector's edges shows line integrals from {low:.3f} to {high:.3f}, expected 0: the beam "
                "drifted, or the flats are of another exposure. Use flats from before and after the scan "
                "(source.flats takes a list).",
                low=low,
                high=high,
            )
        ]
    return truncated(table)


def check_sides(table: ProjectionTable, *, cols: int) -> None:
    """Raise InputError where one side of the sample is cut in most projections of a full turn, the other in none.

    Half a turn later the sample is mirrored about the axis: with the axis in the middle both sides are cut equally.
    """
    if not len(table) or float(np.ptp(table.angle_rad)) < FULL_TURN_LEAST_RAD:
        return
    beyond = _beyond(table)
    left, right = float(beyond["left"].mean()), float(beyond["right"].mean())
    edge = float(np.median(table.left if left > right else table.right))
    if abs(left - right) < ONE_SIDED or edge < HALF_ACQUISITION_EDGE * float(np.median(table.mean)):
        return
    side, near = ("left", "0") if left > right else ("right", f"{cols - 1}")
    raise InputError(
        f"the sample reaches beyond the {side} edge of the detector in {max(left, right):.0%} of the projections of a "
        f"full turn, beyond the other in {min(left, right):.0%}, expected the same share for an axis in the middle: "
        f"this is probably a half acquisition with its axis near column {near}. Set the axis with --set "
        f"recon.axis=COLUMN; --set recon.axis={(cols - 1) / 2:g} if it is in the middle"
    )


def _beyond(table: ProjectionTable) -> dict[str, NDArray[np.bool_]]:
    """In which projections the sample extends beyond each edge of the detector."""
    limit = EDGE_SHARE * float(np.median(table.mean)) + AIR_TOLERANCE
    return {"left": table.left > limit, "right": table.right > limit}


def truncated(table: ProjectionTable) -> list[Notice]:
    """Check whether the sample extends beyond the detector, on which side, and in how many projections."""
    usual = float(np.median(table.mean))
    beyond = _beyond(table)
    cut = beyond["left"] | beyond["right"]
    if cut.mean() <= 0.1:
        return []
    sides = " and ".join(side for side, values in beyond.items() if values.any())
    edge = float(np.median(np.maximum(table.left, table.right)[cut]))
    return [
        notice(
            "sample-truncated",
            f"the sample reaches beyond the {sides} edge of the detector in {cut.mean():.0%} of the projections (line "
            f"integral {edge:.3g} at the edge, {usual:.3g} on average): its rim will be too "
            "bright and absolute values wrong. Set recon.padding=0.125 to make room for the rest of the sample, "
            "recon.axis if it is a half acquisition, or use other flats (source.flats) if there is air at the edges.",
            share=float(cut.mean()),
            edge=edge,
            average=usual,
            left=float(beyond["left"].mean()),
            right=float(beyond["right"].mean()),
        )
    ]


def check_input(starved: float, level: float, *, flat_dark: bool, minus_log: bool, signed: bool) -> None:
    """Raise InputError where the values contradict the input type in `[prep]`.

    `starved` is the fraction of pixels without a positive transmission, `level` the mean line integral;
    `signed`: of an integer dtype with negative values.
    """
    if not minus_log:
        return
    what = "counts" if flat_dark else "transmissions"
    if starved > STARVED_SHARE and signed:
        raise InputError(
            f"{starved:.1%} of the pixels are not above the dark, in a signed dtype: these are probably unsigned "
            "counts stored as signed. Read them as unsigned with --set source.unsigned=true"
        )
    if starved > STARVED_SHARE and not flat_dark:
        raise InputError(
            f"{starved:.1%} of the {what} are zero or negative and have no logarithm. Line integrals (-log taken "
            "already) need --set prep.input=attenuation; raw counts --set prep.input=counts with their flats and darks"
        )
    if not flat_dark and level < -1:
        raise InputError(
            f"the transmissions are {np.exp(-level):.3g} on average, expected 1 or less: these are counts. Use --set "
            "prep.input=counts and their flats and darks"
        )
