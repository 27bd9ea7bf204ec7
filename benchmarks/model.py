"""`python -m benchmarks model`: the constants of this machine, and how well the performance model meets a study.

Three constants of the update and one of the corrections are fitted to the stage times of a scaling study; how fast one
rank receives, ranks scatter and volumes are written is measured by itself. Then the model must predict the seconds of
every point of the study, of which the fit has seen only the stages. Writes the constants for `ministream model`, and
figures: predicted against measured, and what a 2048 × 2048 detector takes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks import _pair, _ranks, machine
from benchmarks._pair import Case
from ministream.app.model import Layout, Machine, Workload, nodes_for, scan_s
from ministream.recon.geometry import padded_slices

Point = dict[str, Any]


def main(argv: list[str]) -> int:
    """Calibrate, check, print, and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks model")
    parser.add_argument("--study", type=Path, default=machine.RESULTS / "scaling", help="folder of a scaling study")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "model", help="folder for constants and figures")
    parser.add_argument("--name", default=None, help="what to call this machine")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one measurement")
    parser.add_argument("--save", action="store_true", help="keep the errors in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    lines = (options.study / "points.jsonl").read_text().splitlines()
    points = [point for point in map(json.loads, lines) if not point["oversubscribed"]]
    known = calibrate(points, options.name or machine.describe()["cpu"], options.timeout)
    rows = [_compare(known, point) for point in points]
    machine.show(rows)
    errors = [abs(row["error"]) for row in rows]
    print(f"error of the predicted seconds: median {np.median(errors):.1%}, largest {max(errors):.1%}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "machine.toml").write_text(_toml(known))
    for name, figure in (("predicted", _predicted(rows)), ("nodes", _nodes(known))):
        for suffix in ("png", "pdf"):
            figure.savefig(options.out / f"{name}.{suffix}", dpi=200)
    print(f"constants and figures are in {options.out}")
    if options.save:
        print(machine.save("model", argv, rows, busy=busy, median_error=float(np.median(errors))))
    return 0


def calibrate(points: Sequence[Point], name: str, timeout_s: float) -> Machine:
    """The constants of this machine."""
    per_slice, shared, per_update = _fit_update(points)
    ingress_bytes, per_frame = _ingress(timeout_s)
    scatter = _ranks.start("distribute", ["--sizes-mib", "4", "--batches", "16", "--repetitions", "5"], 2, timeout_s)
    written = _ranks.start("storage", ["--n", "512", "--slices", "64", "--directory", "/tmp"], 2, timeout_s)
    return Machine(
        name=name,
        cores_per_node=len(os.sched_getaffinity(0)),
        ranks_per_node=1,
        memory_gib_per_node=machine.describe()["memory_gib"],
        updates_per_core=1 / per_slice,
        slices_0=shared / per_slice,
        seconds_per_update=per_update,
        prep_pixels_per_core=float(np.median([_prep_pixels_per_s(point) for point in points])),
        ingress_bytes=ingress_bytes,
        seconds_per_frame=per_frame,
        scatter_bytes=scatter[0]["distributor_gb_s"] * 1e9,
        write_bytes=written[0]["product_mib_s"] * 2**20,
    )


def _fit_update(points: Sequence[Point]) -> NDArray[np.float64]:
    """Seconds per pixel update, per projection and pixel of all slices, and per update; relative errors count."""
    if len({padded_slices(_largest(point)) for point in points}) < 2:
        raise SystemExit("the study does not tell what a slice costs: measure several numbers of --slices")
    seconds = np.array([sum(point["stages"][s]["max"] for s in ("forward", "back", "update")) for point in points])
    features = np.array([_update_features(point) for point in points])
    found, _ = nnls(features / seconds[:, None], np.ones_like(seconds))
    return found


def _update_features(point: Point) -> tuple[float, float, float]:
    case = _case(point)
    visits = case.pixel_updates / case.rows / case.threads
    return visits * padded_slices(_largest(point)), visits, case.projections // case.step


def _prep_pixels_per_s(point: Point) -> float:
    pixels = point["projections"] * _largest(point) * point["n"]
    return float(pixels / point["stages"]["prep"]["max"] / point["threads"])


def _ingress(timeout_s: float) -> tuple[float, float]:
    """Bytes/s and seconds per frame of rank 0, from two scans that hardly compute: large frames, many small ones."""
    large = Case(n=2048, rows=512, ranks=1, threads=1, projections=96, length=96, step=96, iterations=1)
    small = replace(large, n=32, rows=2, projections=2000, length=2000, step=2000)
    (large_s, bytes_), (small_s, _) = (_arrival(case, timeout_s) for case in (large, small))
    per_frame = small_s / small.projections
    return bytes_ / max(large_s - large.projections * per_frame, 1e-9), per_frame


def _arrival(case: Case, timeout_s: float) -> tuple[float, float]:
    """Seconds in which a scan arrived, without the update that follows, and its bytes."""
    summary = _pair.run(case, [], timeout_s)
    update_s = sum(summary["stages"].get(stage, 0.0) for stage in ("update", "forward", "back"))
    return summary["seconds"] - update_s, float(summary["bytes"])


def _compare(known: Machine, point: Point) -> dict[str, Any]:
    case = _case(point)
    work = Workload(
        rows=case.rows,
        cols=case.n,
        projections=case.projections,
        length=case.length,
        step=case.step,
        iterations=case.iterations,
    )
    predicted = scan_s(known, work, Layout(ranks=case.ranks, threads=case.threads))
    return {
        "mode": point["mode"],
        **{key: point[key] for key in ("n", "rows", "ranks", "threads", "seconds")},
        "predicted": predicted,
        "error": predicted / point["seconds"] - 1,
    }


def _case(point: Point) -> Case:
    return Case(**{key: point[key] for key in Case.__dataclass_fields__})


def _largest(point: Point) -> int:
    return -(-point["rows"] // point["ranks"])


def _toml(known: Machine) -> str:
    values = known.model_dump()
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _predicted(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(3.5, 3.2), layout="constrained")
    axes = figure.subplots()
    seconds = [(row["seconds"], row["predicted"]) for row in rows]
    ends = [0.8 * min(map(min, seconds)), 1.2 * max(map(max, seconds))]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, [0.85 * end for end in ends], [1.15 * end for end in ends], color="#dddddd", label="±15 %")
    axes.plot(*zip(*seconds, strict=True), "o", color="#4477aa", markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="measured seconds", ylabel="predicted seconds", xlim=ends, ylim=ends)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _nodes(known: Machine) -> Figure:
    """Nodes of this kind that a 2048 × 2048 detector takes at a rate, for 1 to 8 receiving ranks."""
    work = Workload(rows=2048, cols=2048, projections=1000, length=1000, step=100)
    rates = np.geomspace(1, 2000, 60)
    figure = Figure(figsize=(3.5, 3.0), layout="constrained")
    axes = figure.subplots()
    for colour, ingress in zip(("#4477aa", "#66ccee", "#228833", "#ccbb44"), (8, 4, 2, 1), strict=True):
        found = [(rate, nodes_for(known, work, rate, ingress, most=1 << 17)) for rate in rates]
        line = [(rate, best.layout.nodes) for rate, best in found if best is not None]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, label=f"ingress = {ingress}")
            axes.plot(*line[-1], "x", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="projections/s", ylabel=f"nodes of {known.cores_per_node} cores")
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=7, frameon=False, title="× the last rate that arrives", title_fontsize=6)
    return figure
