"""Checks of the projection angles: value range, unit, duplicates and coverage."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.model import Notice, notice, ranges
from ministream.plausibility.record import ProjectionTable
from ministream.plausibility.remedies import exclude

HALF_TURN_LEAST = 3.0
"""A span of at least this many radians, one step included, counts as half a turn."""
NARROW_DEG = 7.0
FEWEST_FOR_UNIT = 8
DEGREES_TOLERANCE = 0.03
FEWEST_TO_TURN = 16
FULL_TURN_LEAST_DEG = 350.0
SAME_RAD = 1e-7
LIMITED_GAP_RAD = math.radians(5)

UNIT_CODE = "angles-unit"
"""A scan with this notice is not complete unless the user accepts it."""


def judge(table: ProjectionTable, *, cols: int, unit_decided: bool) -> list[Notice]:
    """Check the angles of a scan, in the order of the projections; returns notices.

    `unit_decided`: the user has set the unit, so that a span that suggests another unit is only a notice.

    Raises InputError for angles that are not finite, all equal, or apparently in another unit.
    """
    angles_rad, count = table.angle_rad, len(table)
    bad = table.only(~np.isfinite(angles_rad))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {count} angles are not finite (projections {ranges(bad.index.tolist())}). Every projection "
            f"needs an angle: exclude these with {exclude(bad.position)}"
        )
    if count < 2:
        return []
    check_turning(angles_rad, fewest=2)
    unit = _unit(float(np.ptp(angles_rad)), count, unit_decided)
    return [*unit, *_duplicates(table), *_coverage(angles_rad, cols)]


def check_turning(angles_rad: NDArray[np.float64], fewest: int = FEWEST_TO_TURN) -> None:
    """Raise InputError where at least `fewest` angles exist and all are equal."""
    count = angles_rad.size
    if count >= fewest and float(np.ptp(angles_rad)) < SAME_RAD:
        raise InputError(
            f"all {count} angles are the same ({math.degrees(angles_rad[0]):g} degrees). A tomogram needs directions "
            "over half a turn: name the dataset that holds them with --set source.theta=..., or say them with "
            "--set 'source.angles={start=0,stop=180}'"
        )


def judge_half_acquisition(angles_rad: NDArray[np.float64]) -> list[Notice]:
    """Check that the angles cover the 360 degrees that a half acquisition needs; returns notices."""
    span_deg = math.degrees(float(np.ptp(angles_rad)))
    if span_deg >= FULL_TURN_LEAST_DEG:
        return []
    return [
        notice(
            "half-acquisition-short",
            f"the rotation axis is near the detector's edge, and the angles span {span_deg:.4g} degrees, expected 360: "
            "the outer part of the slices is covered by some directions only. Set recon.axis if the axis is wrong, or "
            "recon.field=detector for slices as wide as the detector.",
            span_deg=span_deg,
        )
    ]


def _unit(span_rad: float, count: int, decided: bool) -> list[Notice]:
    """Detect a half turn in radians that was read as degrees: it spans 3.1 degrees; and the reverse."""
    span_deg = math.degrees(span_rad)
    closed = span_deg * count / (count - 1)
    _check_degrees(span_rad, count, decided)
    if count < FEWEST_FOR_UNIT or span_deg >= NARROW_DEG or closed < HALF_TURN_LEAST:
        return []
    found = f"the {count} angles span {span_deg:.3g} degrees, which would be {span_deg:.3g} radians of a whole scan"
    if decided:
        text = f"{found}. They are taken as degrees, as set: the volume is not complete. If the span is right, give "
        return [notice(UNIT_CODE, f"{text}--accept {UNIT_CODE}.", span_deg=span_deg)]
    raise InputError(
        f"{found}. A scan in degrees spans 180: set the unit with --set source.angle_unit=radians "
        "(or =degrees if the span is right); on the wires of aps-mini-apps with --angle-unit radians (or degrees)"
    )


def _check_degrees(span_rad: float, count: int, decided: bool) -> None:
    """Raise InputError for a half or full turn in degrees that was read as radians: it spans 28 or 57 turns."""
    reached = (span_rad, span_rad * count / (count - 1))
    if (
        decided
        or count < FEWEST_FOR_UNIT
        or not any(abs(reach - turn) <= DEGREES_TOLERANCE * turn for reach in reached for turn in (180, 360))
    ):
        return
    raise InputError(
        f"the {count} angles span {span_rad:.4g} radians, {span_rad / (2 * math.pi):.3g} turns; in degrees it would be "
        "a half or a full turn. Set the unit on the wires of aps-mini-apps with --angle-unit degrees (or radians if "
        "the span is right)"
    )


def _duplicates(table: ProjectionTable) -> list[Notice]:
    angles_rad = table.angle_rad
    order = np.argsort(angles_rad, kind="stable")
    same = np.diff(angles_rad[order]) < SAME_RAD
    repeated = table.only(np.sort(order[1:][same]))
    counts = np.diff(np.r_[0, np.flatnonzero(~same) + 1, angles_rad.size])
    if len(repeated) < 2 or (counts.min() == counts.max()):  # the whole scan was repeated
        return []
    return [
        notice(
            "angles-duplicate",
            f"{len(repeated)} of {len(table)} projections have the angle of another one "
            f"({ranges(repeated.index.tolist())}): the encoder may have stopped. "
            f"If so, exclude them with {exclude(repeated.position)}.",
            frames=repeated.index.tolist(),
            share=len(repeated) / len(table),
        )
    ]


def _coverage(angles_rad: NDArray[np.float64], cols: int) -> list[Notice]:
    """Check the angular coverage, modulo half a turn, because opposite parallel-beam views are equivalent."""
    directions = np.unique(np.round(np.mod(angles_rad, math.pi), 6))
    found = []
    fewest = max(8, cols // 8)
    if directions.size < fewest:
        found.append(
            notice(
                "angles-few",
                f"{directions.size} directions for {cols} columns, expected at least {fewest}: streaks are likely. "
                "Record more projections, or bin the columns.",
                directions=directions.size,
            )
        )
    gaps = np.diff(np.r_[directions, directions[0] + math.pi])
    widest = int(gaps.argmax())
    if gaps[widest] > max(LIMITED_GAP_RAD, 8 * float(np.median(gaps))):
        first_deg, gap_deg = math.degrees(directions[widest]), math.degrees(gaps[widest])
        found.append(
            notice(
                "angles-gap",
                f"no projections from {first_deg:.4g} to {first_deg + gap_deg:.4g} degrees (modulo 180): edges "
                "in these directions are blurred. Record them if you can.",
                first_deg=first_deg,
                gap_deg=gap_deg,
            )
        )
    return found
