"""The angles of a recorded scan: their unit in any spelling, and implausible values."""

from __future__ import annotations

import math
import re
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ministream import config
from ministream.errors import InputError
from ministream.model import Notice, notice

AngleUnit: TypeAlias = Literal["degrees", "radians"]

_DEGREE, _RADIAN = math.pi / 180, 1.0
_TO_RAD = dict.fromkeys(("deg", "degs", "degr", "degree", "degrees", "°", "º"), _DEGREE)
_TO_RAD |= dict.fromkeys(("rad", "rads", "radian", "radians"), _RADIAN)
_TO_RAD |= dict.fromkeys(("mrad", "mrads", "milliradian", "milliradians"), 1e-3)

# A half or a full turn in radians looks like a scan over 3 or 6 degrees; with this few projections it could be either.
_FEW, _TURN_TOLERANCE = 8, 0.03


class AngleRange(config.Section):
    """`angles = {start = 0, step = 0.5}` or `{start = 0, stop = 179.5}`: evenly spaced, in `angle_unit`."""

    start: float = Field(default=0.0, allow_inf_nan=False)
    step: float | None = Field(default=None, allow_inf_nan=False)
    stop: float | None = Field(default=None, allow_inf_nan=False, description="angle of the last projection")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.step is None) == (self.stop is None):
            raise ValueError("give step, or stop (the angle of the last projection)")
        return self

    def of(self, count: int) -> NDArray[np.float64]:
        """The angles of `count` projections, in the unit of the range."""
        if self.step is not None:
            return self.start + self.step * np.arange(count, dtype=np.float64)
        assert self.stop is not None
        return np.linspace(self.start, self.stop, count)


def to_rad(values: NDArray[np.float64], *, units: str, wanted: AngleUnit | None, where: str) -> NDArray[np.float64]:
    """Angles in radians; `units` as the file spells them, such as `[deg]`, unless the user gives the unit.

    Raises InputError for units that are not known, and for values that make a whole scan in the other unit alone.
    """
    if wanted is not None:
        return values * (_RADIAN if wanted == "radians" else _DEGREE)
    bare = re.sub(r"[\[\](){}<>\s._\"']", "", units).lower()
    if bare and bare not in _TO_RAD:
        raise InputError(
            f"{where} has units {units!r}, expected degrees or radians in any spelling. Give "
            "--set source.angle_unit=degrees or --set source.angle_unit=radians"
        )
    if not bare and _makes_turn(values, math.pi):
        return values
    factor = _TO_RAD.get(bare, _DEGREE)
    _check_unit(values, factor, units, where)
    return values * factor


def _check_unit(values: NDArray[np.float64], factor: float, units: str, where: str) -> None:
    """Raise InputError where the file says one of degrees and radians, and the values look like the other."""
    half_turns = {_DEGREE: math.pi, _RADIAN: 180.0}
    if factor not in half_turns or not _makes_turn(values, half_turns[factor]):
        return
    said, other = ("degrees", "radians") if factor == _DEGREE else ("radians", "degrees")
    span = _span(values)
    raise InputError(
        f"{where} has units {units!r} and spans {span:.4g}: that is {math.degrees(span * factor):.4g} degrees, "
        f"expected a half or a full turn, which it is in {other}. Give --set source.angle_unit={other}, or "
        f"--set source.angle_unit={said} if the file is right"
    )


def unit_notice(values: NDArray[np.float64], *, units: str, wanted: AngleUnit | None, where: str) -> Notice | None:
    """The assumption about the unit of these angles, where none is given and it is not the usual one."""
    if wanted is not None or units or not _makes_turn(values, math.pi):
        return None
    span = _span(values)
    return notice(
        "angles-unit",
        f"{where} spans {span:.4g} without units: taken as radians, {math.degrees(span):.4g} degrees. Give "
        "--set source.angle_unit=radians to confirm it, or --set source.angle_unit=degrees.",
        span=span,
    )


def _span(values: NDArray[np.float64]) -> float:
    return float(np.nanmax(values) - np.nanmin(values))


def _makes_turn(values: NDArray[np.float64], half_turn: float) -> bool:
    """Whether the angles, with one more step, make a half or a full turn."""
    finite = values[np.isfinite(values)]
    if finite.size < _FEW:
        return False
    span = _span(finite)
    with_end = span * finite.size / (finite.size - 1)
    turns = (half_turn, 2 * half_turn)
    return any(abs(reach - turn) <= _TURN_TOLERANCE * turn for reach in (span, with_end) for turn in turns)
