"""Number of iterations per update: every rank measures, and all ranks make the same decision."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream import log
from ministream.app.recon.assignment import Assignment
from ministream.parallel.mpi import Comm
from ministream.recon.algorithms import UpdateReport
from ministream.recon.pace import Pace
from ministream.state import State

_LOG = log.get(__name__)


class Pacing:
    """The pace of one job; `iterations` starts an update, `proceed` is called between iterations, `learn` ends it."""

    def __init__(self, comm: Comm, assignment: Assignment) -> None:
        self._comm, self._section = comm, assignment.config.window
        self._pace = Pace(self._section, self._section.step)
        self._newest_s: float | None = None
        self._began = self._ended = time.perf_counter()

    def iterations(self) -> int:
        """Maximum number of iterations of the update that starts now."""
        self._began = time.perf_counter()
        return self._pace.iterations()

    def change(self, *, iterations: int | None = None, step: int | None = None) -> None:
        """Change the limits of the next update; equal on all ranks."""
        changed = {"iterations": iterations, "step": step}
        given = {name: value for name, value in changed.items() if value is not None}
        self._section = self._section.model_copy(update=given)
        self._pace.change(self._section)

    def proceed(self, norm2: float) -> bool:
        """Whether to continue after an iteration with |b - A x|² `norm2` on this rank; collective with a stop rule."""
        if not self._section.stop_change:
            return True
        return self._pace.proceed(float(self._comm.sum(np.array([norm2]))[0]))

    def learn(
        self, report: UpdateReport, *, acquired_s: list[float], idle_s: float, waiting: int
    ) -> NDArray[np.float64]:
        """Record the timing of the update; collective. Returns |b - A x|² of the volume before each iteration.

        `acquired_s` are the acquisition times of its new projections, `idle_s` the idle seconds of this rank since the
        previous update, `waiting` (on rank 0) the number of projections received since.
        """
        now = time.perf_counter()
        update_s, other_s = now - self._began, self._began - self._ended - idle_s
        parts = self._comm.allgather((report.residual_norm2, update_s, other_s, waiting))
        norms, updates_s, others_s, behind = zip(*parts, strict=True)
        self._pace.learn(
            iterations=report.iterations,
            update_s=max(updates_s),
            other_s=max(0.0, *others_s),
            period_s=self._period_s(acquired_s),
            behind=behind[0],
        )
        if self._comm.rank == 0 and (self._section.budget == "adapt" or self._section.budget_s is not None):
            _LOG.info("%d iterations; %s", report.iterations, self._pace)
        self._ended = time.perf_counter()
        return np.sum(norms, axis=0, dtype=np.float64)  # type: ignore[no-any-return]

    def state(self) -> State:
        """The measurements so far, and the acquisition time of the newest projection."""
        return {**self._pace.state(), "newest_s": self._newest_s}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore earlier measurements."""
        self._pace.restore(state)
        self._newest_s = state["newest_s"]

    def _period_s(self, acquired_s: list[float]) -> float:
        """The time in which the beam delivered these projections."""
        newest = max(acquired_s)
        began = min(acquired_s) if self._newest_s is None else self._newest_s
        self._newest_s = newest
        return max(0.0, newest - began)
