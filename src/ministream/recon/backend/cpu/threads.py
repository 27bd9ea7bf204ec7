"""Threads for kernels: Python threads, each in one call without the GIL that takes tasks from a shared counter.

OpenMP and numba's work queue are not used: OpenMP does not support fork and competes with the MPI library for
cores, the work queue allows one caller only. Here the calling thread works too and returns between tasks to let MPI
progress; with one thread no helper is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import Progress, idle

Item = TypeVar("Item")
Work = Callable[[NDArray[np.int64], int], int]
"""Work(counter, quota): do up to `quota` units of the tasks on the counter, return how many were done."""

_PROGRESS_CALLS = 8


class _Crew:
    """The helper threads besides the calling thread."""

    threads = 1
    pool: ThreadPoolExecutor | None = None


def set_threads(threads: int) -> None:
    """Use `threads` threads for every kernel from now on."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if _Crew.pool is not None:
        _Crew.pool.shutdown()
    _Crew.threads = threads
    _Crew.pool = ThreadPoolExecutor(threads - 1, "kernel") if threads > 1 else None


def get_threads() -> int:
    """How many threads kernels use."""
    return _Crew.threads


def run(prepare: Callable[[], Work], tasks: int, progress: Progress = idle, *, units: int = 1) -> None:
    """Do `tasks` tasks of `units` units each on all threads, each with its own `Work`.

    `progress` is called on this thread several times during the work and at the end.
    """
    counter = np.zeros(1, dtype=np.int64)
    helpers: list[Future[int]] = []
    if _Crew.pool is not None:
        helpers = [
            _Crew.pool.submit(lambda: prepare()(counter, tasks * units)) for _ in range(min(_Crew.threads, tasks) - 1)
        ]
    work = prepare()
    quota = max(1, tasks * units // (_PROGRESS_CALLS * _Crew.threads))
    while work(counter, quota) == quota:
        progress()
    _wait(helpers)
    progress()


def each(call: Callable[[Item], None], items: Iterable[Item], progress: Progress = idle) -> None:
    """Call `call`, which works without the GIL, with every item, on all threads."""
    left = iter(list(items))  # its next() is atomic

    def work() -> None:
        for item in left:
            call(item)

    helpers = [_Crew.pool.submit(work) for _ in range(_Crew.threads - 1)] if _Crew.pool is not None else []
    for item in left:
        call(item)
        progress()
    _wait(helpers)
    progress()


def _wait(helpers: Sequence[Future[Any]]) -> None:
    """Wait for helpers that work; the work of those that have not begun, behind another kernel, is done."""
    for helper in helpers:
        if not helper.cancel():
            helper.result()
