"""`python -m benchmarks kernels`: forward and back projection against the limits of the machine and against ASTRA.

Work is counted in GUPS: N² × projections × slices per second, forward and back projection together counted once. One
update costs 8 FLOP, so sgemm's FLOP/s ÷ 8, measured in the same run on as many threads, is the limit. An iteration also
reads the image twice and writes it once, 12 bytes per pixel, as NumPy's y += x does: `projections` times the elements
per second of that is the memory's limit.

    gups_forward, gups_back   each direction alone
    gups                      both, one after the other, as in an iteration
    fraction_of_limit         gups ÷ limit
    fraction_of_roofline      gups ÷ the lower of both limits
    astra_ratio               gups ÷ (threads × ASTRA's CPU SIRT on one slice); ASTRA uses one thread
    scaling                   gups ÷ gups of the same shape on one thread of one rank

`--cpu x86-64-v3` compiles for AVX2 and restricts OpenBLAS to it: machines with AVX-512 measure that path too. A saved
result names the kernels that the matrix product ran (`sgemm`).

Angles are spread evenly over half a turn. Every number is a median over repetitions that take turns with sgemm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import _ranks, machine
from ministream.recon import backend
from ministream.recon.backend.cpu.blocking import PROCESSOR
from ministream.recon.geometry import Beams, Geometry

CPU = backend.default()
SGEMM_N = 2048
SUM_ELEMENTS = 1 << 25
"""128 MiB, more than caches hold."""
WARM_S = 0.05
_CPUS = {"x86-64-v3": ("+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe,+popcnt,+sse4.2", "Haswell")}
"""For a processor that can be named: its features for LLVM, and OpenBLAS's kernels for it."""
_HELD = "MINISTREAM_BENCHMARK_CPU"
DEFAULT_SHAPES = [
    *itertools.product((512, 1024), (8, 16, 64), (64,)),
    *itertools.product((2048,), (8, 16), (64,)),
    *itertools.product((512,), (8, 16, 64), (128,)),
    (512, 16, 256),
    *itertools.product((512, 1024), (16, 64), (16, 32)),
    *itertools.product((512,), (64,), (1, 2, 4, 8)),
]


@dataclass(frozen=True, slots=True)
class Shape:
    """N, projections and slices of all ranks together."""

    n: int
    projections: int
    slices: int

    @property
    def updates(self) -> float:
        """Updates of one iteration, in 10⁹."""
        return self.n**2 * self.projections * self.slices / 1e9


def main(argv: list[str]) -> int:
    """Measure, print a table or a JSON line per shape, and save the rows."""
    options = _parse(argv)
    if options.cpu and os.environ.get(_HELD) != options.cpu:
        return _held_to(options.cpu, argv)
    if _ranks.inside():
        _as_rank(options)
        return 0
    busy = machine.warn_unless_quiet()
    rows: list[dict[str, Any]] = []
    astra: dict[tuple[int, int], float] = {}
    for shape in _shapes(options):
        key = (shape.n, shape.projections)
        if options.astra and key not in astra:
            astra[key] = _astra_gups(shape, options.repetitions)
        for row in _rows(shape, argv, options):
            row["astra_ratio"] = row["gups"] / (row["threads"] * row["ranks"] * astra[key]) if options.astra else None
            row["scaling"] = row["gups"] / next((r["gups"] for r in [*rows, row] if _base_of(r, row)), row["gups"])
            rows.append(row)
            if options.json:
                print(json.dumps(row), flush=True)
    if not options.json:
        machine.show(rows)
    if options.save:
        held = {"cpu": options.cpu or "this processor", "lanes": PROCESSOR.widest, "sgemm": _product_kernel()}
        print(machine.save("kernels" if not options.cpu else f"kernels-{options.cpu}", argv, rows, busy=busy, **held))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels")
    parser.add_argument("--shape", nargs=3, type=int, action="append", metavar=("N", "PROJECTIONS", "SLICES"))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="also on this many ranks of one thread")
    parser.add_argument("--repetitions", type=int, default=9, help="the median counts")
    parser.add_argument("--cpu", choices=sorted(_CPUS), help="compile for this processor, and restrict OpenBLAS to it")
    parser.add_argument("--no-astra", dest="astra", action="store_false")
    parser.add_argument("--json", action="store_true", help="a line per shape")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args(argv)


def _held_to(cpu: str, argv: list[str]) -> int:
    """Measure in a separate process, whose kernels and matrix product use the instructions of `cpu` alone."""
    features, core = _CPUS[cpu]
    held = {_HELD: cpu, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "OPENBLAS_CORETYPE": core}
    command = [sys.executable, "-m", "benchmarks", "kernels", *argv]
    return subprocess.run(command, env=os.environ | held, check=False).returncode


def _product_kernel() -> str:
    """The kernels that NumPy's matrix product runs, as its library names them."""
    from threadpoolctl import threadpool_info

    return ", ".join(f"{library['internal_api']} {library.get('architecture')}" for library in threadpool_info())


def _shapes(options: argparse.Namespace) -> list[Shape]:
    return [Shape(*words) for words in options.shape or DEFAULT_SHAPES]


def _rows(shape: Shape, argv: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for threads in options.threads:
        CPU.set_threads(threads)
        case = Case(shape.n, shape.projections, shape.slices)
        yield _measure(shape, case, threads, options.repetitions)
    for ranks in options.ranks:
        if shape.slices >= ranks:
            words = ["--shape", *(str(size) for size in (shape.n, shape.projections, shape.slices))]
            yield _ranks.start("kernels", [*words, "--repetitions", str(options.repetitions)], ranks)[0]


def _base_of(candidate: dict[str, Any], row: dict[str, Any]) -> bool:
    same = all(candidate[key] == row[key] for key in ("n", "projections", "slices"))
    return same and candidate["threads"] == candidate["ranks"] == 1


class Case:
    """Arrays of one slab, with the kernels warm."""

    def __init__(self, n: int, projections: int, slices: int) -> None:
        geometry = Geometry(n=n, cols=n, axis_col=(n - 1) / 2)
        self.image = CPU.new_image(geometry, slices)
        self.image[:, :, :slices] = 1e-3
        self.sinogram = CPU.new_window(projections, n, slices)
        self.beams = Beams.at(np.arange(projections) * np.pi / projections, geometry.axis_col)
        self.factor = np.full((n, n), 1e-6, np.float32)
        CPU.warm_up(slices)
        self.forward()
        self.back()

    def forward(self) -> None:
        CPU.forward(self.image, self.sinogram, self.beams, gain=-1.0)

    def back(self) -> None:
        CPU.back(self.sinogram, self.image, self.beams, factor=self.factor)

    def last_for(self, seconds: float) -> int:
        """Iterate for this long, at least once; returns the number of iterations."""
        rounds, end = 0, time.perf_counter() + seconds
        while not rounds or time.perf_counter() < end:
            self.forward()
            self.back()
            rounds += 1
        return rounds


def _measure(shape: Shape, case: Case, threads: int, repetitions: int) -> dict[str, Any]:
    forward, back, limits = [], [], []
    roofs = _Limits(threads)
    for _ in range(repetitions):
        limits.append(roofs.measure())
        # not timed: the limits have emptied the caches, put the threads to sleep, and moved them to other cores
        rounds = case.last_for(WARM_S)
        for _ in range(rounds):
            forward.append(_seconds(case.forward))
            back.append(_seconds(case.back))
    return _row(shape, 1, threads, forward, back, limits)


def _row(
    shape: Shape,
    ranks: int,
    threads: int,
    forward: list[float],
    back: list[float],
    limits: list[NDArray[np.float64]],
) -> dict[str, Any]:
    both = statistics.median(f + b for f, b in zip(forward, back, strict=True))
    gups = shape.updates / both
    flops, elements = np.median(limits, axis=0)
    limit, memory_limit = flops / 8, shape.projections * elements
    return {
        "n": shape.n,
        "projections": shape.projections,
        "slices": shape.slices,
        "ranks": ranks,
        "threads": threads,
        "gups_forward": shape.updates / statistics.median(forward),
        "gups_back": shape.updates / statistics.median(back),
        "gups": gups,
        "limit": limit,
        "fraction_of_limit": gups / limit,
        "memory_limit": memory_limit,
        "fraction_of_roofline": gups / min(limit, memory_limit),
    }


def _as_rank(options: argparse.Namespace) -> None:
    """The slices shared out to ranks of one thread; an iteration takes as long as the slowest."""
    from ministream.parallel import mpi
    from ministream.partition import slabs

    comm = mpi.world(None)
    shape = _shapes(options)[0]
    CPU.set_threads(1)
    case = Case(shape.n, shape.projections, slabs(shape.slices, comm.size)[comm.rank].rows)
    forward, back, limits = [], [], []
    roofs = _Limits(1)
    for _ in range(options.repetitions):
        comm.barrier()
        limits.append(comm.sum(roofs.measure()))
        case.last_for(WARM_S)
        comm.barrier()
        forward.append(_slowest(comm, _seconds(case.forward)))
        comm.barrier()
        back.append(_slowest(comm, _seconds(case.back)))
    if comm.rank == 0:
        _ranks.hand_back([_row(shape, comm.size, 1, forward, back, limits)])


def _slowest(comm: Any, seconds: float) -> float:
    everyone = np.zeros(comm.size)
    everyone[comm.rank] = seconds
    return float(comm.sum(everyone).max())


# OpenBLAS's threads keep spinning after a product, on the cores where the kernels are measured.
_BLAS_SPINS_S = 0.1


class _Limits:
    """The machine's limits on as many threads as the kernels: NumPy's matrix product, and a sum of large arrays."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._a = np.ones((SGEMM_N, SGEMM_N), np.float32)
        self._out = np.empty_like(self._a)
        self._x, self._y = (np.array_split(np.ones(SUM_ELEMENTS, np.float32), threads) for _ in range(2))
        self._pool = ThreadPoolExecutor(threads)

    def measure(self) -> NDArray[np.float64]:
        """GFLOP/s of the product, 10⁹ elements/s of the sum."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self._threads):
            product_s = _seconds(lambda: np.dot(self._a, self._a, out=self._out))
        time.sleep(_BLAS_SPINS_S)
        sum_s = _seconds(self._sum)
        return np.array([2 * SGEMM_N**3 / product_s, SUM_ELEMENTS / sum_s]) / 1e9

    def _sum(self) -> None:
        # waits for every part
        for _ in self._pool.map(lambda y, x: np.add(y, x, out=y), self._y, self._x):
            pass


def _astra_gups(shape: Shape, repetitions: int) -> float:
    """One slice of SIRT with ASTRA's CPU `linear` projector, which is Joseph's."""
    import astra

    angles = np.arange(shape.projections) * np.pi / shape.projections
    volume = astra.create_vol_geom(shape.n, shape.n)
    projector = astra.create_projector("linear", astra.create_proj_geom("parallel", 1.0, shape.n, angles), volume)
    sinogram = astra.data2d.create("-sino", astra.projector.projection_geometry(projector), 1.0)
    image = astra.data2d.create("-vol", volume)
    settings = astra.astra_dict("SIRT") | {
        "ProjectorId": projector,
        "ProjectionDataId": sinogram,
        "ReconstructionDataId": image,
    }
    algorithm = astra.algorithm.create(settings)
    astra.algorithm.run(algorithm, 1)
    seconds = [_seconds(lambda: astra.algorithm.run(algorithm, 2)) / 2 for _ in range(min(repetitions, 5))]
    astra.clear()
    return shape.n**2 * shape.projections / statistics.median(seconds) / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
