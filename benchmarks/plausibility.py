"""`python -m benchmarks plausibility`: warnings about good and about faulty scans, and the cost of the gate.

Good scans are random ellipsoids with photon noise, by chance off the axis or larger than the field of view. Their
only warning may be that the sample is truncated, where it is. Faulty ones are the same with one fault.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from ministream import config
from ministream.app.recon.assignment import assign
from ministream.app.recon.gate import ScanGate
from ministream.errors import InputError
from ministream.model import FrameKind, Scan
from ministream.parallel import mpi
from ministream.parallel.row_scatter import SlabFrame
from ministream.prep.corrections import Corrector, Mended


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A scan as arrays; `photons` are those of an air pixel, `truncated` whether the sample leaves the detector."""

    integrals: NDArray[np.float64]
    theta: NDArray[np.float64]
    photons: float
    axis: float
    truncated: bool


def main(argv: list[str]) -> int:
    """Run on this machine, print tables, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plausibility")
    parser.add_argument("--trials", type=int, default=400, help="good scans, and as many of each spoiled kind / 10")
    parser.add_argument("--repetitions", type=int, default=600, help="projections that the cost is the median of")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    logging.disable(logging.WARNING)
    rows = [_good(options.trials), *(_spoiled(name, options.trials // 10) for name in SPOILED)]
    machine.show(rows)
    costs = [_cost(rows_, cols, options.repetitions) for rows_, cols in ((16, 2048), (64, 1024), (128, 2048))]
    machine.show(costs)
    if options.save:
        print(machine.save("plausibility", argv, [*rows, *costs], busy=busy))
    return 0


def _trial(rng: np.random.Generator, *, whole: bool = False) -> Trial:
    """A random good scan of 16 rows; `whole`: never truncated, and off the axis enough for its path to be seen."""
    cols = int(rng.choice([64, 96, 128]))
    axis = (cols - 1) / 2 + rng.uniform(-0.02, 0.02) * cols
    turn = float(rng.choice([np.pi, 2 * np.pi]))
    theta = np.arange(int(rng.integers(60, 180))) * 1.0
    theta *= turn / theta.size
    if rng.random() < 0.3:
        theta = theta[rng.permutation(theta.size)]
    reach = 0.42 if whole or rng.random() < 0.8 else rng.uniform(0.55, 0.8)
    integrals = sum(_ellipsoid(rng, theta, cols, axis, reach * cols) for _ in range(int(rng.integers(2, 7))))
    integrals *= rng.uniform(0.3, 2.5) / integrals.max()
    photons = float(10 ** rng.uniform(2.5, 4.7))
    return Trial(integrals=integrals, theta=theta, photons=photons, axis=axis, truncated=reach > 0.5)


def _ellipsoid(
    rng: np.random.Generator, theta: NDArray[np.float64], cols: int, axis: float, reach: float
) -> NDArray[np.float64]:
    """Line integrals [angle, 16 rows, col] of one ellipsoid within `reach` columns of the axis."""
    a, b, c = rng.uniform(0.1, 0.5, 3) * reach
    distance, direction, phi = rng.uniform(0, reach - max(a, b)), *rng.uniform(0, 2 * np.pi, 2)
    x, y, z = distance * np.cos(direction), distance * np.sin(direction), rng.uniform(-4, 4)
    height = (np.arange(16) - 7.5 - z) / (c + 6)
    shrunk = np.sqrt(np.clip(1 - height**2, 0, None))[None, :, None]
    width2 = (a * np.cos(theta - phi)) ** 2 + (b * np.sin(theta - phi)) ** 2
    u = np.arange(cols) - (x * np.cos(theta) + y * np.sin(theta) + axis)[:, None]
    chord2 = np.clip(shrunk**2 * width2[:, None, None] - u[:, None, :] ** 2, 0, None)
    integrals: NDArray[np.float64] = rng.uniform(0.2, 1) * 2 * a * b * np.sqrt(chord2) / width2[:, None, None]
    return integrals


def _codes(trial: Trial, rng: np.random.Generator, flats: int = 10) -> list[str]:
    """What the gate says about a trial with photon noise in projections, flats and darks."""
    count, rows, cols = trial.integrals.shape
    scan = Scan(
        scan_id="b", rows=rows, cols=cols, projections=count, flats=flats, darks=flats, dtype="<u2", axis_col=trial.axis
    )
    settings = config.load(None)
    corrector = Corrector(rows=rows, cols=cols, options=settings.prep)
    gate = ScanGate(mpi.world(), assign(0, 1, settings, scan, 1), corrector)
    for _ in range(flats):
        corrector.add(FrameKind.DARK, rng.poisson(50, (rows, cols)).astype(np.uint16))
        corrector.add(FrameKind.FLAT, (rng.poisson(trial.photons, (rows, cols)) + 50).astype(np.uint16))
    out = np.zeros((cols, -(-rows // 16) * 16), np.float32)
    gate.settle()
    drift = 1 + 0.01 * rng.standard_normal(count)
    for index in range(count):
        photons = trial.photons * drift[index] * np.exp(-trial.integrals[index])
        pixels = np.minimum(rng.poisson(photons) + rng.poisson(50, (rows, cols)), 65535).astype(np.uint16)
        rows_ = SlabFrame(
            kind=FrameKind.PROJECTION,
            index=index,
            angle_rad=float(trial.theta[index]),
            acquired_s=0.0,
            position=float(index),
            pixels=pixels,
        )
        gate.accepted(rows_, corrector.correct(pixels, out))
    try:
        gate.updated()
        gate.conclude(())
    except InputError:
        return ["refused"]
    return [notice.code for notice in gate.book.notices]


def _good(trials: int) -> dict[str, Any]:
    """False alarms: any code but the truncation, and that one where nothing is truncated."""
    wrong: Counter[str] = Counter()
    alarms = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        trial = _trial(rng)
        codes = [code for code in _codes(trial, rng) if not (code == "sample-truncated" and trial.truncated)]
        wrong.update(codes)
        alarms += bool(codes)
    return {"scans": "good", "trials": trials, "warned": alarms, "share": alarms / max(trials, 1), "codes": dict(wrong)}


def _shuffled(trial: Trial, rng: np.random.Generator) -> Trial:
    return replace(trial, theta=rng.permutation(trial.theta))


def _swapped(trial: Trial, rng: np.random.Generator) -> Trial:
    data = trial.integrals.transpose(1, 0, 2)
    return replace(trial, integrals=data, theta=np.arange(data.shape[0]) * np.pi / data.shape[0])


def _other_axis(trial: Trial, rng: np.random.Generator) -> Trial:
    return replace(trial, axis=trial.axis + 0.06 * trial.integrals.shape[2])


def _radians(trial: Trial, rng: np.random.Generator) -> Trial:
    return replace(trial, theta=np.radians(trial.theta))


def _blocked(trial: Trial, rng: np.random.Generator) -> Trial:
    integrals = trial.integrals.copy()
    integrals[len(integrals) // 3 : len(integrals) // 3 + 5] = 4
    return replace(trial, integrals=integrals)


def _drifting(trial: Trial, rng: np.random.Generator) -> Trial:
    return replace(trial, integrals=trial.integrals + np.linspace(0, 0.2, len(trial.theta))[:, None, None])


SPOILED: dict[str, Callable[[Trial, np.random.Generator], Trial]] = {
    "angles shuffled": _shuffled,
    "rows for angles": _swapped,
    "axis 6 % off": _other_axis,
    "radians": _radians,
    "5 views blocked": _blocked,
    "beam falls by 18 %": _drifting,
}


def _spoiled(name: str, trials: int) -> dict[str, Any]:
    """How many scans with this fault are warned about or refused."""
    found: Counter[str] = Counter()
    alarms = 0
    for seed in range(trials):
        rng = np.random.default_rng(1_000_000 + seed)
        codes = _codes(SPOILED[name](_trial(rng, whole=True), rng), rng)
        found.update(codes)
        alarms += bool(codes)
    return {"scans": name, "trials": trials, "warned": alarms, "share": alarms / max(trials, 1), "codes": dict(found)}


def _cost(rows: int, cols: int, repetitions: int) -> dict[str, Any]:
    """Prep of one projection with the gate and without: the kernel measures no row, and nothing is kept."""
    rng = np.random.default_rng(0)
    scan = Scan(scan_id="b", rows=rows, cols=cols, projections=repetitions, flats=1, darks=0, dtype="<u2")
    settings = config.load(None)
    corrector = Corrector(rows=rows, cols=cols, options=settings.prep)
    corrector.add(FrameKind.FLAT, np.full((rows, cols), 20000, np.uint16))
    gate = ScanGate(mpi.world(), assign(0, 1, settings, scan, 1), corrector)
    gate.settle()
    out = np.zeros((cols, -(-rows // 16) * 16), np.float32)
    frames = [
        SlabFrame(
            kind=FrameKind.PROJECTION,
            index=index,
            angle_rad=0.01 * index,
            acquired_s=0.0,
            position=float(index),
            pixels=rng.poisson(9000, (rows, cols)).astype(np.uint16),
        )
        for index in range(min(repetitions, 8))
    ]
    measures = corrector.measures

    def timed(gated: bool) -> float:
        corrector.measures = measures if gated else measures[:0]
        seconds = []
        for index in range(repetitions):
            frame = frames[index % len(frames)]
            started = time.perf_counter()
            mended: Mended = corrector.correct(frame.pixels, out)
            if gated:
                gate.accepted(frame, mended)
            seconds.append(time.perf_counter() - started)
        return float(np.min(seconds))

    # by turns, and the fastest of each: what else the machine does slows both
    pairs = [(timed(False), timed(True)) for _ in range(4)]
    without, with_gate = (min(times) for times in zip(*pairs, strict=True))
    return {
        "rows": rows,
        "cols": cols,
        "prep_ms": without * 1e3,
        "gated_ms": with_gate * 1e3,
        "cost": with_gate / without - 1,
    }
