"""`python -m benchmarks slices`: slices on demand, by filtered back projection of a window.

    filter_s          filtering all projections, which happens once, as they arrive
    horizontal_s      a horizontal slice, with its row cut from the filtered projections
    vertical_s        a vertical slice; `row` and `column` are the two orthogonal ones
    orthogonal_s      all three
    tilted_s          a plane tilted by 45 degrees
    fbp_slice_s       one slice of n × n pixels by the algorithm `fbp`, for comparison

`--job` also measures what slices cost a running job: pairs of jobs take turns with and without a viewer that asks
for another slice every two seconds. The job leaves one of the cores free with `--threads 1` on two.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _pair, machine
from benchmarks._pair import Case
from ministream.app.view.folder_feed import FolderFeed
from ministream.recon import backend, filtered
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.planes import Plane
from ministream.wire.live import Picture

CPU = backend.default()
ASK_S = 2.0


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks slices")
    parser.add_argument("--projections", type=int, default=400)
    parser.add_argument("--rows", type=int, default=520)
    parser.add_argument("--cols", type=int, default=768)
    parser.add_argument("--side", type=int, default=1024, help="pixels of a slice, per side")
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--repetitions", type=int, default=7, help="the median counts")
    parser.add_argument("--job", action="store_true", help="also the cost for a running job")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of jobs of each kind")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    CPU.warm_up(options.rows)
    CPU.warm_up_planes()
    rows = [_measure(threads, options) for threads in options.threads]
    machine.show(rows)
    more = {}
    if options.job:
        more["job"] = _job(options.pairs)
        machine.show([more["job"]])
    if options.save:
        print(machine.save("slices", argv, rows, busy=busy, **more))
    return 0


def _measure(threads: int, options: argparse.Namespace) -> dict[str, Any]:
    CPU.set_threads(threads)
    count, slices, cols, side = options.projections, options.rows, options.cols, options.side
    window = CPU.new_window(count, cols, slices)
    window[:] = np.random.default_rng(0).random(window.shape, np.float32)
    projections, slots = CPU.new_sinogram(window), np.arange(count)
    beams = Beams.at(np.linspace(0, np.pi, count, endpoint=False), (cols - 1) / 2)
    step, down, half = cols / side, slices / side, (cols - 1) / 2
    flat = Plane.horizontal(cols, slices // 2, step)
    row = Plane(side, side, -half, 0.0, 0.0, step, 0.0, 0.0, 0.0, down)
    column = Plane(side, side, 0.0, half, 0.0, 0.0, -step, 0.0, 0.0, down)
    slanted = Plane.tilted(cols, slices, azimuth_rad=0.3, tilt_rad=np.pi / 4, offset=0.0, step=1.0)
    filter_s = _seconds(lambda: CPU.filter(projections, window, slots, filtered.ramp(cols, "shepp")), 1)
    weights = np.full(count, np.pi / count, np.float32)
    image, single = CPU.new_image(Geometry(n=cols, cols=cols, axis_col=half), 1), CPU.new_window(count, cols, 1)
    factor = np.ones((cols, cols), np.float32)

    def horizontal() -> None:
        CPU.row_plane(np.ascontiguousarray(projections[:, :, slices // 2]), beams, flat)

    def vertical(plane: Plane) -> None:
        CPU.slab_plane(projections, beams, weights, plane, 0, slices)

    n = options.repetitions
    flat_s, row_s, column_s = (
        _seconds(horizontal, n),
        _seconds(lambda: vertical(row), n),
        _seconds(lambda: vertical(column), n),
    )
    return {
        "threads": threads,
        "projections": count,
        "rows": slices,
        "cols": cols,
        "side": side,
        "filter_s": filter_s,
        "horizontal_s": flat_s,
        "row_s": row_s,
        "column_s": column_s,
        "orthogonal_s": flat_s + row_s + column_s,
        "tilted_s": _seconds(lambda: vertical(slanted), n),
        "fbp_slice_s": _seconds(lambda: CPU.back(single, image, beams, factor=factor, interpolate=True), n),
    }


def _seconds(call: Callable[[], object], repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _job(pairs: int) -> dict[str, Any]:
    """Seconds of a job without and with slices, pair by pair; the median of the ratios is the cost."""
    case = Case(n=512, rows=128, ranks=1, threads=1, projections=360, length=180, step=90, iterations=2)
    more = {"output.live": "tcp://127.0.0.1:0"}
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(pairs):
        seconds["without"].append(_pair.run(case, [], 600.0, more)["seconds"])
        seconds["with"].append(_pair.run(case, [], 600.0, more, _asking)["seconds"])
    ratios = [b / a for a, b in zip(seconds["without"], seconds["with"], strict=True)]
    medians = {f"{name}_s": statistics.median(found) for name, found in seconds.items()}
    return {**medians, "cost": statistics.median(ratios) - 1}


@contextmanager
def _asking(out: Path) -> Iterator[None]:
    """A viewer that asks for another slice every ASK_S."""
    stop = threading.Event()
    with FolderFeed(out) as feed:

        def ask() -> None:
            for index in itertools.count():
                feed.want([Picture("z" if index % 2 else "y", 40 + index, "fbp")])
                if stop.wait(ASK_S):
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        yield
        stop.set()
        thread.join()
