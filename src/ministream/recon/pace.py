"""Number of iterations of an update, and its early end: pure arithmetic on measurements.

Every rank must pass the same numbers (sums or maxima over the ranks), so that all ranks decide the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ministream.config import WindowSection
from ministream.state import State

_HEADROOM = 0.9
"""Fraction of the time between updates for iterations: the rest is for frames, output and jitter."""
_MEMORY = 0.5
"""Weight of the newest measurement in the running means."""


class Pace:
    """Iterations per update under `[window]`: iterations, budget, budget_s and stop_change.

    With budget `adapt` an update gets as many iterations, up to `iterations`, as fit into the time in which the beam
    delivers the projections of the next one; with `budget_s` as many as fit into that time. The first update
    then has one iteration, for measurement. The minimum is always one.
    """

    def __init__(self, section: WindowSection, step: int) -> None:
        self._section = section
        self._step = step
        self._iteration_s = 0.0
        self._other_s = 0.0
        self._period_s = 0.0
        self._behind = 0
        self._last_norm2: float | None = None

    def change(self, section: WindowSection) -> None:
        """Use other limits from the next update on; the measurements stay."""
        self._section, self._step = section, section.step

    @property
    def available_s(self) -> float:
        """Seconds the next update may take; infinite without a budget."""
        limits = [self._section.budget_s] if self._section.budget_s is not None else []
        if self._section.budget == "adapt":
            # the backlog must be processed while the next projections arrive
            share = max(0.0, 1 - self._behind / self._step)
            limits.append(_HEADROOM * share * self._period_s - self._other_s)
        return min(limits, default=float("inf"))

    def iterations(self) -> int:
        """Iterations of the next update; starts the update."""
        self._last_norm2 = None
        most = self._section.iterations
        if self._section.budget == "fixed" and self._section.budget_s is None:
            return most
        if not self._iteration_s:
            return 1
        return int(min(max(self.available_s // self._iteration_s, 1), most))

    def proceed(self, norm2: float) -> bool:
        """Whether to continue after an iteration, given |b - A x|² over all ranks from before it."""
        last, self._last_norm2 = self._last_norm2, norm2
        if last is None or not self._section.stop_change:
            return True
        return bool(last**0.5 - norm2**0.5 >= self._section.stop_change * last**0.5)

    def learn(self, *, iterations: int, update_s: float, other_s: float, period_s: float, behind: int = 0) -> None:
        """Record one update.

        `update_s` are its seconds, `other_s` those of everything else since the previous update, `period_s` the time in
        which the beam delivered its projections (from their acquisition times), `behind` counts waiting projections.
        """
        weight = _MEMORY if self._iteration_s else 1.0
        self._iteration_s += weight * (update_s / iterations - self._iteration_s)
        self._other_s += weight * (other_s - self._other_s)
        self._period_s += weight * (period_s - self._period_s)
        self._behind = behind

    def state(self) -> State:
        """The measurements so far."""
        return {
            "iteration_s": self._iteration_s,
            "other_s": self._other_s,
            "period_s": self._period_s,
            "behind": self._behind,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore earlier measurements."""
        self._iteration_s, self._other_s = state["iteration_s"], state["other_s"]
        self._period_s, self._behind = state["period_s"], state["behind"]

    def __str__(self) -> str:
        """The current decision and its reason, for the log and the summary."""
        if self._section.budget == "fixed" and self._section.budget_s is None:
            return f"{self._section.iterations} iterations per update"
        each = f"{self._iteration_s:.3g} s each" if self._iteration_s else "not yet measured"
        return f"budget {self.available_s:.3g} s per update, up to {self._section.iterations} iterations, {each}"
