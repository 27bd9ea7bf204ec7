"""Run-time measurements of a rank: seconds per stage, latency, rate, memory."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ministream.state import State

Clock = Callable[[], float]


class StageClock:
    """Seconds spent in each named stage. Stages may nest; time in an inner stage counts only for that stage."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Charge the time of the block to `stage`."""
        self._charge()
        self._running.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def add(self, stage: str, seconds: float) -> None:
        """Charge seconds that were measured elsewhere; inside a `timed` block they are subtracted from its stage."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        if self._running:
            around = self._running[-1]
            self._seconds[around] = self._seconds.get(around, 0.0) - seconds

    def _charge(self) -> None:
        now = self._clock()
        if self._running:
            stage = self._running[-1]
            self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def seconds(self) -> dict[str, float]:
        """Seconds per stage so far, in the order in which the stages first ended."""
        return dict(self._seconds)


class Latency:
    """Percentiles of seconds from the acquisition of a projection to the image that contains it.

    A histogram of 1 %-wide logarithmic bins from 1 µs to about 12 days: memory is bounded, a percentile
    is accurate to 0.5 %. `negative` counts values below zero, which indicate a clock offset between the
    two machines; they go into the lowest bin.
    """

    _LOWEST_S = 1e-6
    _STEP = math.log(1.01)
    _BINS = 2780

    def __init__(self) -> None:
        self._counts = np.zeros(self._BINS, np.int64)
        self.negative = 0

    def record(self, seconds: float, projections: int = 1) -> None:
        """Count `projections` with a latency of `seconds`."""
        self.negative += projections if seconds < 0 else 0
        position = math.log(max(seconds, self._LOWEST_S) / self._LOWEST_S) / self._STEP
        self._counts[min(int(position), self._BINS - 1)] += projections

    def state(self) -> State:
        """The histogram."""
        return {"counts": self._counts, "negative": self.negative}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a histogram."""
        self._counts[:], self.negative = state["counts"], state["negative"]

    @property
    def count(self) -> int:
        """Projections recorded."""
        return int(self._counts.sum())

    @property
    def total_s(self) -> float:
        """The sum of all latencies, as accurate as a percentile."""
        middles = self._LOWEST_S * np.exp((np.arange(self._BINS) + 0.5) * self._STEP)
        return float(self._counts @ middles)

    def at_most(self, bounds_s: Sequence[float]) -> list[int]:
        """How many projections had at most each of these latencies, 1 % more at most."""
        upto = np.concatenate([[0], np.cumsum(self._counts)])
        steps = np.log(np.asarray(bounds_s) / self._LOWEST_S) / self._STEP
        return [int(upto[min(int(step) + 1, self._BINS)]) for step in steps]

    def percentile(self, percent: float) -> float | None:
        """The latency in seconds that `percent` of the projections do not exceed; None before the first."""
        total = self.count
        if total == 0:
            return None
        rank = max(1, math.ceil(total * percent / 100))
        position = int(np.searchsorted(np.cumsum(self._counts), rank))
        return self._LOWEST_S * math.exp((position + 0.5) * self._STEP)


class Rate:
    """Projections per second over the last seconds."""

    def __init__(self, over_s: float = 5.0, clock: Clock = time.monotonic) -> None:
        self._over_s, self._clock = over_s, clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._spacing = over_s / 64  # limits the number of stored samples

    def update(self, total: int) -> None:
        """Set the current total number of projections."""
        now = self._clock()
        if len(self._marks) > 1 and now - self._marks[-2][0] < self._spacing:
            self._marks.pop()
        self._marks.append((now, total))
        while len(self._marks) > 2 and now - self._marks[1][0] >= self._over_s:
            self._marks.popleft()

    @property
    def per_s(self) -> float:
        """Projections/s; decreases when none arrive."""
        first, count = self._marks[0]
        elapsed = self._clock() - first
        return (self._marks[-1][1] - count) / elapsed if elapsed > 0 else 0.0


def peak_memory_mib() -> float:
    """Peak resident memory of this program, in MiB.

    getrusage(2) is not used: its maximum includes the memory of the parent process before exec.
    """
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) / 1024
