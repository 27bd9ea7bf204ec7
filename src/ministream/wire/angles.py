"""Angles from wires that do not carry their unit."""

from __future__ import annotations

import math
from typing import Literal

from ministream import log

AngleUnit = Literal["degrees", "radians"]

_log = log.get(__name__)


class AngleCheck:
    """Warns, once, when the angles of a stream look like the other unit than the one the user named."""

    def __init__(self, unit: AngleUnit, peer: str) -> None:
        self._unit = unit
        self._peer = peer
        self._count = 0
        self._largest = 0.0
        self._warned = False

    def radians(self, angle: float) -> float:
        """The angle in radians; two turns are more than any scan's radians."""
        self._count += 1
        self._largest = max(self._largest, abs(angle))
        if self._unit == "degrees":
            return math.radians(angle)
        if self._largest > 4 * math.pi:
            self._warn(f"{self._largest:g} looks like degrees, but is read as radians: give --angle-unit degrees")
        return angle

    def check(self) -> None:
        """At the end of a pass: a whole scan within 2 π degrees is more likely a turn in radians."""
        if self._unit == "degrees" and self._count >= 8 and self._largest <= 2 * math.pi:
            self._warn(
                f"no angle exceeds {self._largest:g}: these look like radians, but are read as degrees: "
                "give --angle-unit radians"
            )

    def _warn(self, text: str) -> None:
        if not self._warned:
            _log.warning("%s: %s", self._peer, text)
        self._warned = True
