"""`python -m benchmarks checkpoint`: what checkpoints cost a run, and how long a restart takes.

Every rank holds a slab with a full window and updates its image with SIRT. Of each shape:

    state_mib       what a checkpoint holds, all ranks together
    blocked_s       the ranks wait while their arrays are copied
    write_s         the ranks compute while a thread of each writes; the file system's speed
    update_s        an update without a checkpoint in progress
    beside_s        an update while a checkpoint is being written
    overhead_60s    share of the run time at one checkpoint per minute: blocked, and updates that take longer
    verify_s        a restart reads all files against their checksums
    restore_s       ... and every rank takes back its part

Updates with and without a checkpoint in progress alternate; medians count.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _ranks, machine

MIB = 2**20
INTERVAL_S = 60.0


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoint")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--n", type=int, nargs="+", default=[256, 512], help="slices are n × n pixels")
    parser.add_argument("--slices", type=int, default=32, help="of all ranks together")
    parser.add_argument("--window", type=int, nargs="+", default=[90, 360], help="projections in the window")
    parser.add_argument("--repetitions", type=int, default=5, help="the median counts")
    parser.add_argument("--directory", type=Path, default=None, help="file system to measure (default: temporary)")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    if _ranks.inside():
        _run(options)
        return 0
    busy = machine.warn_unless_quiet()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        rows = _ranks.start("checkpoint", [*argv, "--directory", folder], options.ranks)
    machine.show(rows)
    if options.save:
        print(machine.save("checkpoint", argv, rows, busy=busy))
    return 0


def _run(options: argparse.Namespace) -> None:
    from ministream.parallel import mpi

    comm = mpi.world(options.ranks)
    rows = [
        _measure(comm, options.directory / f"{n}-{window}", n, options.slices, window, options.repetitions)
        for n in options.n
        for window in options.window
    ]
    if comm.rank == 0:
        _ranks.hand_back(rows)


def _measure(comm: Any, folder: Path, n: int, slices: int, window: int, repetitions: int) -> dict[str, Any]:
    from ministream.storage import CheckpointWriter, open_newest

    run = _Slab(comm, n, slices, window)
    ours = comm.dup()
    writer = CheckpointWriter(ours, folder, run.slab.first)
    run.update()
    writer.begin(run.state())  # the copies are made once
    writer.finish()
    seconds: dict[str, list[float]] = {"update": [], "blocked": [], "beside": [], "write": []}
    written, writing_s = writer.nbytes, writer.seconds
    for _ in range(repetitions):
        seconds["update"].append(_timed(comm, run.update))
        seconds["blocked"].append(_timed(comm, lambda: writer.begin(run.state())))
        seconds["beside"].append(_timed(comm, run.update))
        writer.finish()
        seconds["write"].append(writer.seconds - writing_s)
        writing_s = writer.seconds
    written = sum(comm.allgather(writer.nbytes - written)) / repetitions
    found: list[Any] = []
    verify_s = _timed(comm, lambda: found.append(open_newest(ours, folder)))
    restore_s = _timed(comm, lambda: run.restore(found[0]))
    writer.discard()
    writer.close()
    ours.free()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    beside = math.ceil(median["write"] / median["beside"]) * max(0.0, median["beside"] - median["update"])
    return {
        "ranks": comm.size,
        "n": n,
        "slices": slices,
        "window": window,
        "state_mib": round(written / MIB, 1),
        "blocked_s": round(median["blocked"], 4),
        "write_s": round(max(comm.allgather(median["write"])), 3),
        "update_s": round(median["update"], 3),
        "beside_s": round(median["beside"], 3),
        "overhead_60s": f"{(median['blocked'] + beside) / INTERVAL_S:.2%}",
        "verify_s": round(verify_s, 3),
        "restore_s": round(restore_s, 3),
    }


def _timed(comm: Any, action: Callable[[], object]) -> float:
    """Seconds of the slowest rank."""
    comm.barrier()
    began = time.perf_counter()
    action()
    return max(comm.allgather(time.perf_counter() - began))


class _Slab:
    """One rank's part of a run whose window is full of noise: the values do not matter here."""

    def __init__(self, comm: Any, n: int, slices: int, window: int) -> None:
        from ministream import partition
        from ministream.app.recon.parts import SlabImage
        from ministream.config import ReconSection
        from ministream.recon import open_algorithm
        from ministream.recon.geometry import Geometry
        from ministream.recon.window import Window

        self._comm, self._n = comm, n
        self.slab = partition.slabs(slices, comm.size)[comm.rank]
        geometry = Geometry(n=n, cols=n, axis_col=(n - 1) / 2)
        self._window = Window(length=window, step=window, cols=n, slices=self.slab.rows)
        self._algorithm = open_algorithm(ReconSection(), geometry, self.slab.rows, comm)
        self._image = SlabImage(geometry, self.slab.rows)
        rng = np.random.default_rng(comm.rank)
        for index in range(window):
            place = self._window.slot(index, index * math.pi / window)
            place[:, : self.slab.rows] = rng.random((n, self.slab.rows), np.float32)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"window": self._window, "algorithm": self._algorithm, "image": self._image}

    def update(self) -> None:
        self._algorithm.update(self._image.handle, self._window, 1)

    def state(self) -> dict[str, Any]:
        return {f"{part}.{name}": value for part, held in self._parts.items() for name, value in held.state().items()}

    def restore(self, checkpoint: Any) -> None:
        saved = checkpoint.read(self.slab.slice, self._comm.part(self._n))
        for part, held in self._parts.items():
            prefix = f"{part}."
            held.restore({name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)})
