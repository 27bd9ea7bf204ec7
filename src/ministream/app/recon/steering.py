"""Steering: what an operator changes while the job runs, applied by all ranks between two updates."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ministream import log
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.axis_follower import AxisFollower
from ministream.app.recon.pacing import Pacing
from ministream.errors import ConfigError
from ministream.parallel.mpi import Comm
from ministream.recon.window import Window
from ministream.state import State
from ministream.wire.live import Command

_LOG = log.get(__name__)

MAX_ITERATIONS = 10_000


def check(command: Command, value: float | None, assignment: Assignment) -> None:
    """Raises ConfigError for a value that the job cannot use; callable from any thread."""
    length, cols = assignment.config.window.length, assignment.scan.cols
    limits: dict[Command, tuple[float, float]] = {
        "iterations": (1, MAX_ITERATIONS),
        "step": (1, length),
        "axis": (0, cols - 1),
    }
    if command not in limits:
        if value is not None:
            raise ConfigError(f"{command} {value:g}: expected no value. Leave it out.")
        return
    low, high = limits[command]
    whole = command != "axis"
    if value is None or not low <= value <= high or (whole and value != int(value)):
        shown = "no value" if value is None else f"{value:g}"
        number = "a whole number" if whole else "a detector column"
        raise ConfigError(f"{command}: found {shown}, expected {number} from {low:g} to {high:g}.")
    if command == "axis" and assignment.config.recon.finds_axis:
        raise ConfigError(
            "axis: this job finds the rotation axis in the projections (recon.axis = auto). Start it with --axis "
            "COLUMN to move the axis by hand."
        )


class Steering:
    """One rank's part. `ask` queues a command on rank 0; `apply`, between two updates, obeys it on all ranks.

    `history` says what was changed, for the output and for a restart: each entry has `command`, `value`, `at_s` (UNIX
    time) and `update`, the number of updates before it.
    """

    def __init__(self, comm: Comm, assignment: Assignment, window: Window, pacing: Pacing, axis: AxisFollower) -> None:
        self._comm, self._live = comm, assignment.config.output.live is not None
        self._window, self._pacing, self._axis = window, pacing, axis
        self._queue: deque[tuple[Command, float | None]] = deque()
        self.history: list[dict[str, Any]] = []
        self.stepped: Callable[[int], None] = lambda _step: None
        """Called where the number of new projections per update changes."""

    def ask(self, command: Command, value: float | None) -> None:
        """Queue a command that `check` has accepted; on rank 0."""
        self._queue.append((command, value))

    def apply(self, update: int) -> bool:
        """Obey the queued commands after `update` updates; collective. Whether a snapshot is asked for."""
        if not self._live:
            return False
        asked = self._comm.bcast(tuple(self._queue) if self._comm.rank == 0 else ())
        for command, value in asked:
            if self._comm.rank == 0:
                self._queue.popleft()
                _LOG.info("steering after update %d: %s%s", update, command, "" if value is None else f" {value:g}")
            self.history.append({"command": command, "value": value, "at_s": time.time(), "update": update})
            self._set(command, value)
        return any(command == "snapshot" for command, _ in asked)

    def state(self) -> State:
        """What was changed so far."""
        return {"history": json.dumps(self.history)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Change it again; the axis is part of other state."""
        self.history = json.loads(state.get("history", "[]"))
        for each in self.history:
            self._set(each["command"], each["value"])

    def _set(self, command: Command, value: float | None) -> None:
        match command, value:
            case "iterations", float():
                self._pacing.change(iterations=int(value))
            case "step", float():
                self._window.step = int(value)
                self._pacing.change(step=int(value))
                self.stepped(int(value))
            case "axis", float():
                self._axis.move(value)
