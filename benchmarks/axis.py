"""`python -m benchmarks axis`: error and time of the rotation axis, compared with Algotom's `find_center_vo`.

Each case is the foam phantom, with one thing that makes it difficult. Algotom examines the middle row, of a turn
the first half; its range of candidates is the default, the middle of the detector ± 1/20 of the columns, unless
`--wide` gives it the columns from 10 % to 90 %.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from algotom.prep.calculation import find_center_vo
from numpy.typing import NDArray

from benchmarks import machine
from ministream.axis import AxisEstimate, finder
from ministream.model import FrameKind
from ministream.source import phantom

CASES: dict[str, dict[str, Any]] = {
    "half a turn": {},
    "Shepp-Logan": {"sample": "shepp-logan"},
    "off the middle by 30 %": {"axis": 0.2},
    "1000 photons": {"i0": 1000.0},
    "stripes of 2 %": {"rings": 0.02},
    "truncated to 60 %": {"cut": (0.2, 0.8)},
    "a turn": {"range_deg": 360.0},
    "a turn, truncated to 60 %": {"range_deg": 360.0, "cut": (0.3, 0.9)},
    "160 degrees": {"range_deg": 160.0},
}


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks axis")
    parser.add_argument("--cols", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--projections", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="phantoms per case")
    parser.add_argument("--wide", action="store_true", help="Algotom searches from 10 to 90 %% of the columns")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    rows = [_case(name, options) for name in CASES]
    machine.show(rows)
    if options.save:
        print(machine.save("axis", argv, rows, busy=busy))
    return 0


def _case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Mean errors in columns, and seconds; None where the axis was refused."""
    ours, theirs, seconds = [], [], np.zeros(2)
    for seed in range(options.seeds):
        sinograms, angles_rad, axis_col = _scan(options, seed, **CASES[name])
        rows = np.arange(len(sinograms))
        began = time.perf_counter()
        found = finder.find(sinograms, angles_rad, rows, rows, last=True, total=lambda values: values)
        between = time.perf_counter()
        middle = sinograms[len(sinograms) // 2][angles_rad < np.pi - 1e-9]
        last = sinograms.shape[2] - 1
        limits = {"start": int(0.1 * last), "stop": int(0.9 * last)} if options.wide else {}
        theirs.append(abs(find_center_vo(middle, **limits) - axis_col))
        seconds += between - began, time.perf_counter() - between
        ours.append(abs(found.axis_col - axis_col) if isinstance(found, AxisEstimate) else np.nan)
    mean_s = seconds / options.seeds
    return {
        "case": name,
        "method": found.method if isinstance(found, AxisEstimate) else "refused",
        "error_col": round(float(np.mean(ours)), 3),
        "seconds": round(float(mean_s[0]), 3),
        "algotom_error_col": round(float(np.mean(theirs)), 3),
        "algotom_seconds": round(float(mean_s[1]), 3),
    }


def _scan(
    options: argparse.Namespace, seed: int, *, axis: float = 0.5, cut: tuple[float, float] = (0.0, 1.0), **more: Any
) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
    """Line integrals [rows, projections, cols], angles and axis; `axis` and `cut` are shares of the columns.

    The axis is 0.3 columns beside the share, because phantoms are rarely centred on a column.
    """
    axis_col = round(axis * (options.cols - 1)) + 0.3
    chosen = phantom.Options(
        **({"sample": "foam", "i0": 50_000.0} | more),
        rows=options.rows,
        cols=options.cols,
        projections=options.projections,
        axis=axis_col,
        seed=seed,
        fixed_pattern=0,
        dtype="float32",
    )
    source = phantom.Source(chosen, order="sequential", repeat=1)
    frames = [source.frame(FrameKind.PROJECTION, index) for index in range(chosen.projections)]
    counts = np.stack([frame.pixels for frame in frames], axis=1)
    integrals = -np.log(np.maximum(counts - chosen.dark, 0.5) / chosen.i0)
    first, last = (round(share * options.cols) for share in cut)
    angles_rad = np.array([frame.angle_rad for frame in frames])
    return integrals[:, :, first:last].astype(np.float32), angles_rad, axis_col - first
