"""The rotation axis from the projections themselves.

    sinograms     what is kept of the stream: some detector rows of every projection
    directions    which projections are mirror images of each other, and which cover half a turn
    symmetry      the axis about which projections from opposite directions mirror each other
    mass          the axis from the path of the centre of mass, for less than half a turn
    finder        which method applies, and whether its answer can be believed

Rows are detector rows, columns are detector columns, pixel centres at integers; angles are radians. Work on rows is
local to a rank; a `Total` sums over the ranks, so that all of them find the same axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Total = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""The sum over ranks of an array, on every rank; collective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisEstimate:
    """A rotation axis that was found.

    `axis_col`: the column, at the middle of the detector's rows where the axis is tilted. `method`: one of
    `finder.METHODS`. `error_col`: its standard error; `spread_col`: the standard deviation of the `rows` that were
    looked at one by one, about a straight line, columns. `confidence`: the share of these rows that agree with the
    line within a column. `tilt_deg` ± `tilt_error_deg`: the angle between axis and detector columns, 0 where too few
    rows tell; positive where the axis moves to higher columns in lower rows. `projections`: how many had arrived.
    """

    axis_col: float
    method: str
    error_col: float
    spread_col: float
    confidence: float
    tilt_deg: float
    tilt_error_deg: float
    rows: int
    projections: int

    def __str__(self) -> str:
        return (
            f"column {self.axis_col:.2f} ± {self.error_col:.2f} ({self.method}, {self.projections} projections; spread "
            f"between {self.rows} rows {self.spread_col:.2f} columns, confidence {self.confidence:.0%})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Undecided:
    """Why no axis can be given; `waiting` where further projections may change that."""

    reason: str
    waiting: bool = False
