"""`python -m benchmarks scaling`: strong and weak scaling over ranks × threads × slices × N, with figures.

Every point is one pair of jobs from end to end, and one file in the study's folder: an interrupted study
continues, and the tasks of a Slurm job array share one study (slurm/scaling.sbatch). At the end all points
become one file of JSON lines, figures (PNG and PDF) and a table.

    strong   the slices are those of the whole volume, for any number of ranks
    weak     the slices are those of each rank

Points with more threads than cores test correctness at scale; they are labelled, and left out of the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _pair, _scaling_figures, machine
from benchmarks._pair import Case

COMPUTE = ("prep", "forward", "back", "update")
COMMUNICATION = ("scatter", "idle")


def main(argv: list[str]) -> int:
    """Run the missing points of the study, then collect it."""
    options = _parse(argv)
    points = _points(options)
    mine = points[options.task :: options.tasks]
    options.study.mkdir(parents=True, exist_ok=True)
    busy = machine.warn_unless_quiet()
    for number, (mode, case) in enumerate(mine, start=1):
        file = options.study / f"{mode}-{case.name}.json"
        if file.exists():
            continue
        print(f"{number}/{len(mine)}  {mode}  {case.name}", flush=True)
        row = _measure(mode, case, options) | machine.heading("scaling", argv, busy)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(row) + "\n")
        part.rename(file)
    if options.tasks == 1 or options.collect:
        collect(options.study)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling")
    parser.add_argument("--modes", nargs="+", choices=("strong", "weak"), default=["strong", "weak"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--slices", type=int, nargs="+", default=[32], help="of the volume, or of each rank")
    parser.add_argument("--n", type=int, nargs="+", default=[512])
    parser.add_argument("--projections", type=int, default=192)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--step", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3, help="the median by seconds counts")
    parser.add_argument("--oversubscribe", action="store_true", help="also points with more threads than cores")
    parser.add_argument("--cores", type=int, default=0, help="cores that the ranks have (0: this machine's)")
    parser.add_argument("--launch", default="", help="more for `ministream launch`; {ranks}, {threads} are filled in")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one pair")
    parser.add_argument("--study", type=Path, default=machine.RESULTS / "scaling", help="folder of the points")
    parser.add_argument("--task", type=int, default=int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))
    parser.add_argument("--tasks", type=int, default=int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1")))
    parser.add_argument("--collect", action="store_true", help="collect also after one task of several")
    options = parser.parse_args(argv)
    options.cores = options.cores or len(os.sched_getaffinity(0))
    return options


def _points(options: argparse.Namespace) -> list[tuple[str, Case]]:
    found = []
    for mode, n, slices, ranks, threads in itertools.product(
        options.modes, options.n, options.slices, options.ranks, options.threads
    ):
        case = Case(
            n=n,
            rows=slices * (ranks if mode == "weak" else 1),
            ranks=ranks,
            threads=threads,
            projections=options.projections,
            length=options.length,
            step=options.step,
            iterations=options.iterations,
        )
        if case.rows >= ranks and (options.oversubscribe or case.cores <= options.cores):
            found.append((mode, case))
    return found


def _measure(mode: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    launch = shlex.split(options.launch.format(ranks=case.ranks, threads=case.threads))
    runs = [_pair.run(case, launch, options.timeout) for _ in range(options.repetitions)]
    summary = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    if not summary["complete"]:
        raise RuntimeError(f"{case.name}: the scan is incomplete: {summary['ending']}")
    return describe(mode, case, summary, options.cores)


def describe(mode: str, case: Case, summary: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """One point: what a reader wants to know of a job's summary."""
    ranks = summary["stages_per_rank"]
    computing, talking = (_of_each(ranks, stages) for stages in (COMPUTE, COMMUNICATION))
    update = _of_each(ranks, COMPUTE[1:])
    memory = summary["peak_memory_mib"]
    return {
        "mode": mode,
        **asdict(case),
        "oversubscribed": case.cores > cores,
        "seconds": summary["seconds"],
        "projections_per_s": summary["projections_per_s"],
        "gups": case.pixel_updates / summary["seconds"] / 1e9,
        "gups_update": case.pixel_updates / max(update) / 1e9,
        "communication_share": float(np.mean(talking)) / summary["seconds"],
        "imbalance": max(computing) / float(np.mean(computing)) - 1,
        "bytes_received": summary["bytes"],
        "bytes_scattered": summary["bytes_scattered"],
        "bytes_written": summary["bytes_written"],
        "write_hidden_s": summary["write_hidden_s"],
        "memory_mib": _pair.spread(memory),
        "stages": _pair.stages(summary),
        "stages_per_rank": ranks,
    }


def _of_each(ranks: Sequence[Mapping[str, float]], stages: Sequence[str]) -> list[float]:
    """Seconds of each rank in these stages together."""
    return [sum(rank.get(stage, 0.0) for stage in stages) for rank in ranks]


def collect(study: Path) -> None:
    """All points of a study as `points.jsonl`, with efficiencies, as figures, and as a table."""
    points = [json.loads(file.read_text()) for file in sorted(study.glob("*-*.json"))]
    rows = [point | {"efficiency": efficiency(point, points)} for point in points]
    (study / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("mode", "n", "rows", "ranks", "threads", "seconds", "projections_per_s", "gups", "efficiency")
    more = ("communication_share", "imbalance", "oversubscribed")
    machine.show([{key: row[key] for key in (*columns, *more)} | {"mib": row["memory_mib"]["max"]} for row in rows])
    trusted = [row for row in rows if not row["oversubscribed"]]
    for figure in _scaling_figures.draw(trusted, study):
        print(figure)


def efficiency(point: dict[str, Any], points: list[dict[str, Any]]) -> float:
    """Updates per second and core, as a share of the same series' point with the fewest cores."""
    same = [other for other in points if series(other) == series(point)]
    first = min(same, key=lambda other: (other["ranks"] * other["threads"], other["ranks"]))
    rates = [p["gups"] / (p["ranks"] * p["threads"]) for p in (point, first)]
    return float(rates[0] / rates[1])


def series(point: dict[str, Any]) -> tuple[Any, ...]:
    """What points that are compared have in common: everything but ranks and threads."""
    slices = point["rows"] if point["mode"] == "strong" else point["rows"] // point["ranks"]
    keys = ("mode", "n", "projections", "length", "step", "iterations")
    return *(point[key] for key in keys), slices
