"""The rotation axis while the scan runs: found as soon as the projections tell, and revised as more arrive."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ministream import log
from ministream.app.recon.assignment import HALF_ACQUISITION_SHARE, Assignment
from ministream.app.recon.axis_search import AxisSearch
from ministream.axis import AxisEstimate, Undecided
from ministream.errors import InputError
from ministream.model import Notice, notice
from ministream.parallel.mpi import Comm
from ministream.recon.algorithms import Algorithm
from ministream.state import State

_LOG = log.get(__name__)

LEAST_CHANGE_COL = 0.1
"""A revised axis that differs by less is not worth a change of all weights."""
TILT_DEG = 0.1
"""A larger tilt is warned about, where it exceeds TILT_SIGMA times its error."""
TILT_SIGMA = 3.0

# The projections between two searches grow with their number, so that all searches together cost a few of the last.
_GROWTH_UNTIL_FOUND = 1.25
_GROWTH = 1.5


class AxisFollower:
    """One rank's part of the search; all ranks find the same axis. Without `recon.axis = auto` it does nothing.

    `col` is the axis in use. A new one enters between two updates; the image goes on from what it is. `missed` are the
    projections that left the window before the first update, which waits for the axis.
    """

    def __init__(self, comm: Comm, assignment: Assignment, algorithm: Algorithm) -> None:
        self._comm, self._algorithm, self._scan = comm, algorithm, assignment.scan
        self._field = assignment.config.recon.field
        self._automatic = assignment.config.recon.finds_axis
        self.col = assignment.axis_col
        self.missed = 0
        self._moved = False
        self._estimate: AxisEstimate | None = None
        self._history: list[tuple[int, float]] = []
        self._next = 0
        self._search = AxisSearch(comm, assignment, keeps=self._automatic)
        self.accepted, self.refill = self._search.accepted, self._search.refill

    def ready(self) -> bool:
        """Whether the image can be updated: the axis is known; looks for it where that is due; collective."""
        if self._automatic and len(self._search) >= self._next:
            self._look(last=False)
        return not self._automatic or self._estimate is not None

    def conclude(self) -> None:
        """Look for the last time; collective. Raises InputError where the projections do not tell the axis."""
        if not self._automatic:
            return
        undecided = self._look(last=True)
        with self._comm.together():
            if self._estimate is None and undecided is not None:
                raise InputError(
                    f"the rotation axis cannot be found: {undecided.reason}. Give it with --axis COLUMN; "
                    "`ministream try FILE --axis FIRST:LAST:STEP` shows a slice for each of several columns."
                )

    def move(self, axis_col: float) -> None:
        """Set the axis by hand, from the next update on."""
        self.col = axis_col
        self._algorithm.move_axis(axis_col)
        self._moved = True

    def notices(self) -> list[Notice]:
        """What is odd about the axis that was found."""
        found = self._estimate
        if found is None:
            return []
        notices = []
        if self.missed:
            notices.append(
                notice(
                    "axis-late",
                    f"{self.missed} projections left the window before the rotation axis was found, and are not in "
                    f"the image. Set window.length = {self._history[0][0]} or more, or give the axis: "
                    f"--axis {self.col:.2f}.",
                    projections=self.missed,
                )
            )
        middle, share = (self._scan.cols - 1) / 2, HALF_ACQUISITION_SHARE * self._scan.cols
        if self._field == "auto" and abs(self.col - middle) > share:
            notices.append(
                notice(
                    "axis-near-edge",
                    f"the rotation axis was found at column {self.col:.2f}, far from the middle {middle:g}, and "
                    "slices are as wide as the detector. Set recon.field = half for a half acquisition, whose slices "
                    "are wider, or recon.field = detector.",
                    axis_col=self.col,
                )
            )
        if abs(found.tilt_deg) > max(TILT_DEG, TILT_SIGMA * found.tilt_error_deg):
            notices.append(
                notice(
                    "axis-tilted",
                    f"the rotation axis is tilted by {found.tilt_deg:.2f} ± {found.tilt_error_deg:.2f} degrees against "
                    f"the detector's columns: the first and the last row miss it by up to "
                    f"{abs(math.tan(math.radians(found.tilt_deg))) * self._scan.rows / 2:.1f} columns. Rotate the "
                    "detector, or the projections before they are sent.",
                    tilt_deg=found.tilt_deg,
                    tilt_error_deg=found.tilt_error_deg,
                )
            )
        return notices

    def provenance(self) -> Mapping[str, float | str]:
        """What a file says about the axis: attributes `axis_…`; empty where it was not searched for or not found."""
        found = self._estimate
        if found is None:
            return {"axis_col": self.col, "axis_method": "operator"} if self._moved else {}
        return {
            "axis_col": self.col,
            "axis_method": found.method,
            "axis_error_col": found.error_col,
            "axis_spread_col": found.spread_col,
            "axis_confidence": found.confidence,
            "axis_tilt_deg": found.tilt_deg,
            "axis_history": json.dumps([{"projections": count, "axis_col": col} for count, col in self._history]),
        }

    def state(self) -> State:
        """The axis so far; the sinograms are not kept, a restart looks on in those of the window."""
        found = self._estimate
        values = {name: getattr(found, name) for name in AxisEstimate.__slots__} if found is not None else None
        return {
            "col": self.col,
            "history": json.dumps(self._history),
            "estimate": json.dumps(values),
            "missed": self.missed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the axis of the previous run."""
        values, self.missed = json.loads(state["estimate"]), int(state["missed"])
        self._history = [(int(count), float(col)) for count, col in json.loads(state["history"])]
        if values is not None:
            self._estimate = AxisEstimate(**values)
            self.col = float(state["col"])
            self._algorithm.move_axis(self.col)

    def _look(self, *, last: bool) -> Undecided | None:
        grown = _GROWTH if self._estimate is not None else _GROWTH_UNTIL_FOUND
        if not last and not self._search.possible:
            self._next = len(self._search) + 1
            return None
        self._next = math.ceil(grown * len(self._search)) + 1
        found = self._search.find(last=last)
        if isinstance(found, Undecided):
            if self._comm.rank == 0:
                _LOG.info("rotation axis not found yet: %s", found.reason)
            return found
        if self._estimate is None or abs(found.axis_col - self.col) > LEAST_CHANGE_COL:
            self._adopt(found)
        return None

    def _adopt(self, found: AxisEstimate) -> None:
        if self._comm.rank == 0:
            _LOG.info("rotation axis%s: %s", "" if self._estimate is None else f" revised from {self.col:.2f}", found)
        self._estimate, self.col = found, found.axis_col
        self._history.append((found.projections, found.axis_col))
        self._algorithm.move_axis(found.axis_col)
