"""`python -m benchmarks distribute`: how fast frames are distributed to the ranks, against bare MPI and memcpy.

For each frame size, bytes that reach other ranks per second:

    memcpy        one core copies as many bytes
    bare          Scatterv of the frame as bytes, blocking, nothing else: the limit of this MPI
    distributor   the product's distributor: frames announced and scattered in batches
    hidden        share of the distribution's time that is overlapped with computation
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import _ranks, machine

COLS = 2048
MIB = 2**20


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks distribute")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sizes-mib", type=float, nargs="+", default=[0.25, 1, 4, 16, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repetitions", type=int, default=7, help="the median counts")
    parser.add_argument("--big", action="store_true", help="also one frame of more than 2 GiB per rank")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    if _ranks.inside():
        _run(options)
        return 0
    busy = machine.warn_unless_quiet()
    rows = _ranks.start("distribute", argv, options.ranks)
    machine.show(rows)
    if options.save:
        print(machine.save("distribute", argv, rows, busy=busy))
    return 0


def _run(options: argparse.Namespace) -> None:
    from ministream.parallel import mpi

    comm = mpi.world(options.ranks)
    rows = [
        _measure(comm, round(size * MIB), batch, options.repetitions)
        for size in options.sizes_mib
        for batch in options.batches
    ]
    if options.big:
        rows.append(_measure(comm, comm.size * 2 * 2**30 + 2**28, 1, 1))
    if comm.rank == 0:
        _ranks.hand_back(rows)


def _measure(comm: Any, frame_bytes: int, batch: int, repetitions: int) -> dict[str, Any]:
    frames = max(batch, min(4096, round(256 * MIB / frame_bytes)))
    frames -= frames % batch
    deal = _Deal(comm, frame_bytes, batch, frames)
    seconds = {
        "memcpy": _median(comm, deal.copy, repetitions),
        "bare": _median(comm, deal.bare, repetitions),
        "distributor": deal.distribute(repetitions),
    }
    moved = frames * frame_bytes * (comm.size - 1) / comm.size
    # As much computation as distribution, then both overlapped.
    deal.calibrate(seconds["distributor"])
    compute = _median(comm, deal.compute, repetitions)
    both = deal.distribute(repetitions, computing=True)
    return {
        "frame_mib": frame_bytes / MIB,
        "batch": batch,
        "frames": frames,
        "ranks": comm.size,
        **{f"{name}_gb_s": moved / s / 1e9 for name, s in seconds.items()},
        "of_bare": seconds["bare"] / seconds["distributor"],
        "hidden": 1 - max(0.0, both - compute) / seconds["distributor"],
    }


def _median(comm: Any, run: Callable[[], None], repetitions: int) -> float:
    run()
    seconds = []
    for _ in range(repetitions):
        comm.raw.Barrier()
        started = time.perf_counter()
        run()
        comm.raw.Barrier()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


class _Deal:
    """The same frames, distributed in every compared way."""

    def __init__(self, comm: Any, frame_bytes: int, batch: int, frames: int) -> None:
        from ministream import partition
        from ministream.model import Frame, FrameKind, Scan

        rows = max(comm.size, frame_bytes // (COLS * 2))
        self._comm, self._batch, self._frames = comm, batch, frames
        self._scan = Scan(scan_id="benchmark", rows=rows, cols=COLS, projections=frames, flats=0, darks=0, dtype="<u2")
        self._slabs = partition.slabs(rows, comm.size)
        # As many buffers as a batch needs, touched, so that no page is missing: every way that is compared reads and
        # writes the same memory, whatever fits a cache.
        self._buffers = [np.full((rows, COLS), k, np.uint16) for k in range(batch if comm.rank == 0 else 0)]
        self._own = np.ones((batch, self._slabs[comm.rank].rows, COLS), np.uint16)
        self._left = 0
        self._work = np.ones((256, 256), np.float32)
        self._rounds = 0
        self._ring = [
            Frame(kind=FrameKind.PROJECTION, index=k, angle_rad=0.0, pixels=buffer, acquired_s=0.0)
            for k, buffer in enumerate(self._buffers)
        ]

    def copy(self) -> None:
        """The bytes that one rank gets, copied by one core."""
        target = np.empty_like(self._own)
        for k in range(self._frames):
            np.copyto(target[k % self._batch], self._own[k % self._batch])

    def bare(self) -> None:
        """Blocking scatters and nothing else."""
        from ministream.parallel.mpi import MPI, row_type

        kind = row_type(COLS * 2)
        counts, starts = [slab.rows for slab in self._slabs], [slab.first for slab in self._slabs]
        for k in range(self._frames):
            if self._comm.rank == 0:
                buffer = self._buffers[k % len(self._buffers)]
                self._comm.raw.Scatterv([buffer, counts, starts, kind], MPI.IN_PLACE, root=0)
            else:
                own = self._own[k % self._batch]
                self._comm.raw.Scatterv(None, [own, counts[self._comm.rank], kind], root=0)

    def distribute(self, rounds: int, *, computing: bool = False) -> float:
        """The product's distributor, one stream of all rounds; the median of a round's seconds, on the slowest rank.

        With `computing`, each batch is computed on while the next one is in transit.
        """
        from ministream.parallel.row_scatter import RowScatter

        # The first round touches the staging memory and is not counted.
        self._left = self._frames * (rounds + 1)
        feed = self._feed if self._comm.rank == 0 else None
        distributor = RowScatter(self._comm, self._scan, self._slabs, self._batch, feed)
        marks, taken = [], 0
        while (batch := distributor.take()) is not None:
            if computing:
                self._compute_batch(distributor.poll)
            taken += len(batch)
            if taken % self._frames == 0:
                marks.append(time.perf_counter())
        distributor.close()
        return max(self._comm.allgather(float(np.median(np.diff(marks)))))

    def calibrate(self, seconds: float) -> None:
        """Choose how much `compute` does: about `seconds` in all."""
        self._rounds = 1
        self.compute()
        started = time.perf_counter()
        self.compute()
        one = time.perf_counter() - started
        self._rounds = max(1, int(self._comm.bcast(seconds / one)))

    def compute(self) -> None:
        """What a rank computes while frames arrive."""
        for _ in range(self._frames // self._batch):
            self._compute_batch(None)

    def _compute_batch(self, poll: Callable[[], bool] | None) -> None:
        for _ in range(self._rounds * self._batch):
            self._work @ self._work
            if poll is not None:
                poll()

    def _feed(self) -> Sequence[Any] | None:
        if self._left == 0:
            return None
        self._left -= self._batch
        return self._ring
