"""`python -m benchmarks peers`: SIRT on one window beside ASTRA's CPU SIRT and scikit-image's SART, at equal quality.

All get the same line integrals of a foam phantom with photon noise, and the true axis. An image is compared with the
truth by PSNR inside its circle. Each peer iterates until its PSNR is that of Mini-Stream after `--iterations`, or does
not grow any more; `psnr_best` is the highest of the iterations tried, since iterations fit the noise in the end.

    s_per_slice    seconds for one slice, all iterations, on `threads` threads; set-up is not counted
    slowdown       s_per_slice ÷ that of Mini-Stream on one thread

ASTRA reconstructs slice by slice on one thread (`linear` is Joseph's projector, as here; `strip` weighs areas);
scikit-image's SART also. An odd number of columns has its middle on a pixel: the only axis that scikit-image knows.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from ministream import config, recon
from ministream.model import FrameKind, Slab
from ministream.quality import slab_quality, value_range
from ministream.recon import backend
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.source import phantom

Images = NDArray[np.float32]


class Problem:
    """Line integrals [rows, projections, cols], their angles [projections], and the true slices [rows, n, n]."""

    def __init__(self, options: argparse.Namespace) -> None:
        chosen = phantom.Options(
            sample="foam",
            rows=options.slices,
            cols=options.n,
            projections=options.projections,
            axis=(options.n - 1) / 2,
            i0=options.photons,
            fixed_pattern=0,
            seed=1,
            dtype="float32",
        )
        source = phantom.Source(chosen, order="sequential", repeat=1)
        frames = [source.frame(FrameKind.PROJECTION, index) for index in range(chosen.projections)]
        counts = np.stack([frame.pixels for frame in frames], axis=1)
        self.integrals = -np.log(np.maximum(counts - chosen.dark, 0.5) / chosen.i0).astype(np.float32)
        self.angles_rad = np.array([frame.angle_rad for frame in frames])
        self.n = options.n
        scan = source.describe()
        assert scan.truth is not None
        self.truth: Images = phantom.truth(scan.truth, Slab(0, scan.rows), n=self.n, at=0.5)
        low, high = value_range(self.truth)
        self._range = high - low

    def psnr(self, images: Images) -> float:
        """PSNR in dB of slices [rows, n, n], inside the circle."""
        return slab_quality(images, self.truth, self._range).mean()["psnr"]


Steps = Iterator[tuple[float, Images]]
"""After each iteration: the seconds it took for all slices, and the slices."""


def ministream(kind: str, problem: Problem, threads: int, limit: int) -> Steps:
    """An algorithm of this package, one iteration at a time."""
    backend.default().set_threads(threads)
    rows, projections, cols = problem.integrals.shape
    geometry = Geometry(n=problem.n, cols=cols, axis_col=(cols - 1) / 2)
    algorithm = recon.open_algorithm(config.ReconSection(kind=kind), geometry, rows)
    window = Window(length=projections, step=projections, cols=cols, slices=rows)
    for index, angle in enumerate(problem.angles_rad):
        window.slot(index, float(angle))[:, :rows] = problem.integrals[:, index].T
    image = algorithm.backend.new_image(geometry, rows)
    algorithm.backend.warm_up(rows)
    # not timed: the weights of a window are computed once
    algorithm.update(algorithm.backend.new_image(geometry, rows), window, 1)
    for _ in range(limit):
        began = time.perf_counter()
        algorithm.update(image, window, 1)
        yield time.perf_counter() - began, np.ascontiguousarray(np.moveaxis(image[:, :, :rows], 2, 0))


def astra(projector: str) -> Callable[[Problem, int, int], Steps]:
    """ASTRA's SIRT on the CPU with one of its projectors."""

    def steps(problem: Problem, threads: int, limit: int) -> Steps:
        import astra

        cols = problem.integrals.shape[2]
        volume = astra.create_vol_geom(problem.n, problem.n)
        beams = astra.create_projector(
            projector, astra.create_proj_geom("parallel", 1.0, cols, problem.angles_rad), volume
        )
        algorithms, images = [], []
        for sinogram in problem.integrals:
            data = astra.data2d.create("-sino", astra.projector.projection_geometry(beams), sinogram)
            images.append(astra.data2d.create("-vol", volume))
            settings = {"ProjectorId": beams, "ProjectionDataId": data, "ReconstructionDataId": images[-1]}
            algorithms.append(astra.algorithm.create(astra.astra_dict("SIRT") | settings))
        for _ in range(limit):
            began = time.perf_counter()
            for one in algorithms:
                astra.algorithm.run(one, 1)
            yield time.perf_counter() - began, np.stack([astra.data2d.get(one) for one in images])
        astra.clear()

    return steps


def skimage(problem: Problem, threads: int, limit: int) -> Steps:
    """scikit-image's SART: one iteration uses the projections one after the other."""
    from skimage.transform import iradon_sart

    degrees = np.degrees(problem.angles_rad)
    images: list[Any] = [None] * len(problem.integrals)
    for _ in range(limit):
        began = time.perf_counter()
        images = [
            iradon_sart(np.ascontiguousarray(sinogram.T), theta=degrees, image=image)
            for sinogram, image in zip(problem.integrals, images, strict=True)
        ]
        yield time.perf_counter() - began, np.stack(images)


PEERS: dict[str, Callable[[Problem, int, int], Steps]] = {
    "ASTRA SIRT, linear": astra("linear"),
    "ASTRA SIRT, strip": astra("strip"),
    "scikit-image SART": skimage,
}


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers")
    parser.add_argument("--n", type=int, default=255, help="columns, odd; slices are n x n")
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--projections", type=int, default=180)
    parser.add_argument("--photons", type=float, default=20_000.0, help="in air, per pixel")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    if options.n % 2 == 0:
        parser.error("--n must be odd: the axis of scikit-image is the middle pixel")
    busy = machine.warn_unless_quiet()
    problem = Problem(options)
    threads = sorted({1, len(os.sched_getaffinity(0))})
    rows = [
        _row("Mini-Stream SIRT", each, ministream("sirt", problem, each, options.iterations), problem)
        for each in threads
    ]
    goal = rows[0]["psnr"]
    rows += [
        _row(f"Mini-Stream {kind}", each, ministream(kind, problem, each, options.iterations), problem, goal)
        for kind in ("os_sirt", "sart", "cgls")
        for each in threads
    ]
    for name, peer in PEERS.items():
        rows.append(_row(name, 1, peer(problem, 1, 4 * options.iterations), problem, goal))
    for row in rows:
        row["slowdown"] = round(row["s_per_slice"] / rows[0]["s_per_slice"], 2)
    machine.show(rows)
    if options.save:
        print(machine.save("peers", argv, rows, busy=busy))
    return 0


def _row(name: str, threads: int, steps: Steps, problem: Problem, goal: float = np.inf) -> dict[str, Any]:
    """Iterate up to `goal` dB, or while the image gets better."""
    psnrs: list[float] = []
    seconds = 0.0
    for took, images in steps:
        seconds += took
        psnrs.append(problem.psnr(images))
        if psnrs[-1] >= goal or (np.isfinite(goal) and len(psnrs) > 2 and psnrs[-1] < psnrs[-2]):
            break
    return {
        "program": name,
        "threads": threads,
        "iterations": len(psnrs),
        "psnr": round(psnrs[-1], 2),
        "psnr_best": round(max(psnrs), 2),
        "s_per_slice": round(seconds / len(problem.integrals), 4),
    }
