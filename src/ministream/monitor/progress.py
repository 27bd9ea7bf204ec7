"""Progress of the job: a bar on a terminal, a line per update elsewhere."""

from __future__ import annotations

import time

import rich.progress
from rich.console import Console

from ministream.monitor.measure import Clock, Rate

LINE_INTERVAL_S = 1.0


class Progress:
    """Shows used projections, rate, lag and updates on the console of the user.

    `total` is the expected number of projections, 0 if unknown. On a terminal the bar is redrawn;
    elsewhere an update prints a line, at most one per second, and `close` prints the last one.
    """

    def __init__(self, total: int, console: Console, clock: Clock = time.monotonic) -> None:
        self._total, self._console, self._clock = total, console, clock
        self._rate = Rate(clock=clock)
        self._started = clock()
        self._updates = 0
        self._last_line_s = -LINE_INTERVAL_S
        self._pending: str | None = None
        self._bar = self._start() if console.is_terminal else None

    def _start(self) -> rich.progress.Progress:
        bar = rich.progress.Progress(
            rich.progress.TextColumn("[bold]projections"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[state]}"),
            rich.progress.TimeElapsedColumn(),
            console=self._console,
        )
        bar.add_task("", total=self._total or None, state="")
        bar.start()
        return bar

    def update(self, *, used: int, received: int, updates: int, behind_s: float | None = None) -> None:
        """Set the progress: projections in the image and received so far, updates of the image.

        `behind_s` is the age of the newest projection that the image contains.
        """
        self._rate.update(used)
        state = f"{self._rate.per_s:.1f}/s  {_lag(received - used, behind_s)}  update {updates}"
        if self._bar is not None:
            self._bar.update(rich.progress.TaskID(0), completed=used, state=state)
        elif updates > self._updates:
            of_total = f"/{self._total}" if self._total else ""
            self._pending = f"{self._clock() - self._started:7.1f} s  projections {used}{of_total}  {state}"
            if self._clock() - self._started - self._last_line_s >= LINE_INTERVAL_S:
                self._line()
        self._updates = updates

    def close(self) -> None:
        """Show the last state and release the terminal."""
        if self._bar is not None:
            self._bar.stop()
        self._line()

    def _line(self) -> None:
        if self._pending is not None:
            self._console.print(self._pending, highlight=False, markup=False, soft_wrap=True)
            self._last_line_s = self._clock() - self._started
            self._pending = None


def _lag(frames: int, behind_s: float | None) -> str:
    age = f" ({behind_s:.1f} s)" if behind_s is not None else ""
    return f"lag {max(frames, 0)} projections{age}"
