"""`python -m benchmarks model`: the constants of this machine, and how well the performance model matches a study.

What an update and the corrections cost is fitted to the stage times of a scaling study; how fast one rank receives,
ranks scatter, copy, and write is measured by itself. Then the model must predict the seconds of every point of the
study, once with the constants fitted to all points, once with those fitted to all the others (`left_out`). Writes the
constants for `ministream model`, and figures: predicted against measured, and what a 2048 × 2048 detector takes.

    python -m benchmarks model --machine FILE.toml     only the figure of another machine's constants
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks import _ranks, ingress, machine
from benchmarks._pair import Case
from ministream.app.check import idle_rank_mib
from ministream.cli.performance import load_machine
from ministream.performance import Layout, Machine, Workload, exchange_s, moments, nodes_for, scan_s
from ministream.recon.footprint import padded_slices

Point = dict[str, Any]


def main(argv: list[str]) -> int:
    """Calibrate, check, print, and save."""
    options = _parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.machine is not None:
        known = load_machine(options.machine)
        _draw(options.out / options.machine.stem, _nodes(known))
        return 0
    busy = machine.warn_unless_quiet()
    lines = (options.study / "points.jsonl").read_text().splitlines()
    points = [point for point in map(json.loads, lines) if not point["oversubscribed"]]
    known = calibrate(points, options.name or machine.describe()["cpu"], options.timeout)
    rows = [_compare(known, points, point) for point in points]
    machine.show(rows)
    errors = {name: np.abs([row[name] for row in rows]) for name in ("error", "left_out")}
    for name, values in errors.items():
        print(f"{name}: median {np.median(values):.1%}, largest {max(values):.1%}")
    (options.out / "machine.toml").write_text(_toml(known))
    _draw(options.out / "predicted", _predicted(rows))
    _draw(options.out / "nodes", _nodes(known))
    if options.save:
        medians = {f"median_{name}": float(np.median(values)) for name, values in errors.items()}
        print(machine.save("model", argv, rows, busy=busy, constants=known.model_dump(), **medians))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks model")
    parser.add_argument("--study", type=Path, default=machine.RESULTS / "scaling", help="folder of a scaling study")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "model", help="folder for constants and figures")
    parser.add_argument("--machine", type=Path, default=None, help="constants of a machine: draw what it can do")
    parser.add_argument("--name", default=None, help="what to call this machine")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one measurement")
    parser.add_argument("--save", action="store_true", help="keep the errors in benchmarks/results")
    return parser.parse_args(argv)


def calibrate(points: Sequence[Point], name: str, timeout_s: float) -> Machine:
    """The constants of this machine."""
    scattered = _ranks.start("distribute", ["--sizes-mib", "4", "--batches", "16", "--repetitions", "5"], 2, timeout_s)
    written = _ranks.start("storage", ["--n", "512", "--slices", "64", "--directory", "/tmp"], 2, timeout_s)
    scatter_bytes = scattered[0]["distributor_gb_s"] * 1e9
    return Machine(
        name=name,
        cores_per_node=_cores(),
        ranks_per_node=1,
        memory_gib_per_node=machine.describe()["memory_gib"],
        idle_rank_mib=idle_rank_mib(64),
        **fit(points, scatter_bytes),
        **_ingress(),
        scatter_bytes=scatter_bytes,
        write_bytes=written[0]["product_mib_s"] * 2**20,
        copy_bytes=_copy_bytes(),
    )


def fit(points: Sequence[Point], scatter_bytes: float) -> dict[str, float]:
    """What an update and the corrections cost, from the stages of a study; absolute relative errors count."""
    if len({padded_slices(_largest(point)) for point in points}) < 2:
        raise SystemExit("the study does not determine the cost of a slice: measure several numbers of --slices")
    fits = [(crowding, *_solve(points, crowding)) for crowding in np.linspace(0, 1, 51)]
    crowding, (per_visit, shared), _ = min(fits, key=lambda found: found[2])
    slower = [_slower(point, crowding) for point in points]
    seconds = [
        _seconds(point, "update", "max") + _seconds(point, "idle", "min") - _exchange_s(point, scatter_bytes)
        for point in points
    ]
    features = [_weight_features(point, slow) for point, slow in zip(points, slower, strict=True)]
    (per_changed, per_pixel, per_update), _ = _fit(features, seconds)
    return {
        "updates_per_core": 1 / per_visit,
        "slices_0": shared / per_visit,
        "crowding": float(crowding),
        "weights_per_core": 1 / max(per_changed, 1e-15),
        "seconds_per_pixel": per_pixel,
        "seconds_per_update": per_update,
        "prep_pixels_per_rank": float(np.median([_prep_pixels_per_s(point) for point in points])),
    }


def _solve(points: Sequence[Point], crowding: float) -> tuple[NDArray[np.float64], float]:
    """Seconds per pixel update, and per projection and pixel of all slices, if a full node is slower by `crowding`."""
    features = []
    for point in points:
        visits = _case(point).pixel_updates / point["rows"] / point["threads"] * _slower(point, crowding)
        features.append((visits * padded_slices(_largest(point)), visits))
    return _fit(features, [_seconds(p, "forward", "max") + _seconds(p, "back", "max") for p in points])


def _exchange_s(point: Point, scatter_bytes: float) -> float:
    """Of all updates."""
    work = _work(point)
    return len(moments(work)) * exchange_s(scatter_bytes, work, point["ranks"])


def _weight_features(point: Point, slower: float) -> tuple[float, float, float]:
    """Pixels per projection that comes or goes, pixels per update, updates."""
    updates = moments(_work(point))
    pixels = point["n"] ** 2
    changed = sum(update.changed for update in updates)
    return pixels * changed * slower / point["threads"] / point["ranks"], pixels * len(updates), len(updates)


def _fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[NDArray[np.float64], float]:
    """Non-negative costs with the least absolute relative errors, and their sum: disturbed runs have little weight.

    Iteratively reweighted least squares.
    """
    scaled = np.array(features) / np.array(seconds)[:, None]
    size = scaled.max(axis=0)
    scaled /= size
    weights = np.ones(len(seconds))
    for _ in range(20):
        found, _ = nnls(scaled * weights[:, None], weights)
        errors = np.abs(scaled @ found - 1)
        weights = 1 / np.sqrt(np.maximum(errors, 1e-3))
    return found / size, float(errors.sum())


def _slower(point: Point, crowding: float) -> float:
    cores = _cores()
    return 1 + crowding * (point["ranks"] * point["threads"] - 1) / (cores - 1) if cores > 1 else 1.0


def _seconds(point: Point, stage: str, which: str) -> float:
    return float(point["stages"][stage][which])


def _prep_pixels_per_s(point: Point) -> float:
    pixels = point["projections"] * _largest(point) * point["n"]
    return float(pixels / point["stages"]["prep"]["max"])


def _ingress() -> dict[str, float]:
    """What receiving costs: per byte, per frame, and in cores (producer and both ends of the tunnel are here too)."""
    rows = [ingress.measure(size, 512, 256, 3) for size in (1 / 16, 1, 8)]
    per_frame = [row["seconds"] / row["frames"] for row in rows]
    (fixed, per_byte), _ = _fit([(1.0, row["frame_bytes"]) for row in rows], per_frame)
    cores = float(np.median([row["cores"] for row in rows]))
    return {"ingress_bytes": 1 / per_byte, "seconds_per_frame": fixed, "ingress_cores": cores}


def _copy_bytes() -> float:
    """Bytes/s that one core copies, of arrays that no cache holds."""
    source, target = np.ones(1 << 26, np.float32), np.zeros(1 << 26, np.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return float(source.nbytes / np.median(seconds))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _compare(known: Machine, points: Sequence[Point], point: Point) -> dict[str, Any]:
    layout = Layout(ranks=point["ranks"], threads=point["threads"])
    rest = [other for other in points if other is not point]
    others = known.model_copy(update=fit(rest, known.scatter_bytes))
    predicted, left_out = (scan_s(one, _work(point), layout) for one in (known, others))
    return {
        "mode": point["mode"],
        **{key: point[key] for key in ("n", "rows", "ranks", "threads", "iterations", "seconds")},
        "predicted": predicted,
        "error": predicted / point["seconds"] - 1,
        "left_out": left_out / point["seconds"] - 1,
    }


def _work(point: Point) -> Workload:
    case = _case(point)
    return Workload(
        rows=case.rows,
        cols=case.n,
        projections=case.projections,
        length=case.length,
        step=case.step,
        iterations=case.iterations,
    )


def _case(point: Point) -> Case:
    return Case(**{key: point[key] for key in Case.__dataclass_fields__})


def _largest(point: Point) -> int:
    return -(-point["rows"] // point["ranks"])


def _toml(known: Machine) -> str:
    values = known.model_dump()
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _draw(stem: Path, figure: Figure) -> None:
    for suffix in ("png", "pdf"):
        figure.savefig(stem.with_suffix(f".{suffix}"), dpi=200)
    print(f"{stem}.png, {stem}.pdf")


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
    for colour, receiving in zip(("#4477aa", "#66ccee", "#228833", "#ccbb44"), (8, 4, 2, 1), strict=True):
        found = [(rate, nodes_for(known, work, rate, receiving, most=1 << 17)) for rate in rates]
        line = [(rate, best.layout.nodes) for rate, best in found if best is not None]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, label=f"ingress = {receiving}")
            axes.plot(*line[-1], "x", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="projections/s", ylabel=f"nodes of {known.cores_per_node} cores")
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=7, frameon=False, title="× the last rate that arrives", title_fontsize=6)
    return figure
