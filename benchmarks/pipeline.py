"""`python -m benchmarks pipeline`: both jobs with the tunnel between them, projections/s from end to end.

Also the share of time that rank 0 spends in each stage, and peak memory per rank against what `ministream check`
predicts. The producer reads a recorded scan and shares this machine's cores with the reconstruction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import _pair, machine
from benchmarks._pair import Case


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pipeline")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ingress", type=int, nargs="+", default=[1], help="ranks that receive; no more than --ranks")
    parser.add_argument("--threads", type=int, default=0, help="per rank; 0: two cores shared out")
    parser.add_argument("--shapes", nargs="+", default=["64x512", "64x1024"], help="detector rows × columns")
    parser.add_argument("--projections", type=int, default=360)
    parser.add_argument("--length", type=int, default=90)
    parser.add_argument("--step", type=int, default=45)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--write-freq", type=int, default=0, help="updates per snapshot; 0: none")
    parser.add_argument("--writers", nargs="+", default=["direct"], help="of [output] writer")
    parser.add_argument("--repetitions", type=int, default=3, help="the median by projections/s counts")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one pair")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    rows = [
        _measure(case, k, writer, options)
        for case in _cases(options)
        for k in options.ingress
        if k <= case.ranks
        for writer in options.writers
    ]
    machine.show([{key: value for key, value in row.items() if key != "stages"} for row in rows])
    for row in rows:
        print(f"\nstages of rank 0, {row['rows']} × {row['n']}, {row['ranks']} ranks, {row['ingress']} receive")
        machine.show([row["stages"]])
    if options.save:
        print(machine.save("pipeline", argv, rows, busy=busy))
    return 0


def _cases(options: argparse.Namespace) -> list[Case]:
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    return [
        Case(
            n=n,
            rows=rows,
            ranks=ranks,
            threads=options.threads or max(1, 2 // ranks),
            projections=options.projections,
            length=options.length,
            step=options.step,
            iterations=options.iterations,
        )
        for rows, n in shapes
        for ranks in options.ranks
    ]


def _measure(case: Case, ingress: int, writer: str, options: argparse.Namespace) -> dict[str, Any]:
    more = {"window.write_freq": options.write_freq, "output.writer": writer}
    runs = [_pair.run(case, ["--ingress", str(ingress)], options.timeout, more) for _ in range(options.repetitions)]
    summary = sorted(runs, key=lambda run: run["projections_per_s"])[len(runs) // 2]
    predicted = _predicted_mib(case, more | {"stream.ingress": ingress})
    peaks = summary["peak_memory_mib"]
    others = max(peaks[1:], default=0.0)
    others_predicted = predicted["ranks that receive" if ingress > 1 else "other ranks"]
    return {
        "rows": case.rows,
        "n": case.n,
        "ranks": case.ranks,
        "threads": case.threads,
        "ingress": ingress,
        "projections_per_s": summary["projections_per_s"],
        "mib_per_s": summary["bytes"] / summary["seconds"] / 2**20,
        "gups": case.pixel_updates / summary["seconds"] / 1e9,
        "latency_p50_s": summary["latency_s"]["p50"],
        "writer": writer,
        "write_waited_s": summary["stages"]["write"],
        "write_hidden_s": summary["write_hidden_s"],
        "rank_0_mib": peaks[0],
        "of_predicted": peaks[0] / predicted["rank 0"],
        "other_mib": others,
        "other_of_predicted": others / others_predicted if others else None,
        "stages": {name: round(seconds, 3) for name, seconds in summary["stages"].items()},
    }


def _predicted_mib(case: Case, more: dict[str, object]) -> dict[str, float]:
    """Peak memory by rank that `ministream check` predicts."""
    with tempfile.TemporaryDirectory() as folder:
        scan = _pair.make_scan(Path(folder) / "scan.h5", case)
        settings = {
            **case.settings(),
            **more,
            "source.kind": "dxchange",
            "source.file": scan,
            "recon.threads": case.threads,
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "ministream", "check", "--json", "--ranks", str(case.ranks), *words]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    predicted: dict[str, float] = json.loads(told.stdout)["peak_mib"]
    return predicted
