"""`python -m benchmarks compare A B -- NAME options`: two commits on this machine, in turns, as ratios B/A.

Each commit is checked out into a folder of its own and measured by its own benchmark NAME in processes of its own.
The turns alternate (A B, B A, …), so that a machine that becomes slower or busier does so for both. The ratio of each
turn is taken before the median over the turns; the smallest and the largest ratio show the spread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import machine

PROJECT = Path(__file__).resolve().parents[1]
Row = Mapping[str, Any]


def main(argv: list[str]) -> int:
    """Measure both commits in turns, print the ratios, and save them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", usage="%(prog)s A B [options] -- NAME …")
    parser.add_argument("commits", nargs=2, metavar=("A", "B"), help="anything that `git rev-parse` knows")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each commit")
    parser.add_argument("--of", nargs="+", metavar="COLUMN", help="columns to compare; none: every float")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    words = argv.index("--") if "--" in argv else len(argv)
    options, benchmark = parser.parse_args(argv[:words]), argv[words + 1 :]
    if not benchmark:
        parser.error("no benchmark: add `-- NAME options`, as of `python -m benchmarks NAME options`")
    busy = machine.warn_unless_quiet()
    with ExitStack() as stack:
        trees = [stack.enter_context(_checked_out(commit)) for commit in options.commits]
        turns = [_turn(trees, benchmark, backwards=bool(turn % 2)) for turn in range(options.turns)]
    rows = [row for k in range(len(turns[0][0])) for row in _ratios([(a[k], b[k]) for a, b in turns], options.of)]
    machine.show(rows)
    if options.save:
        print(machine.save("compare", argv, rows, busy=busy, commits=options.commits))
    return 0


@contextmanager
def _checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        packed = subprocess.run(["git", "-C", PROJECT, "archive", commit], check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=packed.stdout)
        yield Path(folder)


def _turn(trees: Sequence[Path], benchmark: Sequence[str], *, backwards: bool) -> tuple[list[Row], list[Row]]:
    """The rows of both trees, measured one after the other."""
    order = (1, 0) if backwards else (0, 1)
    measured = {index: _measure(trees[index], benchmark) for index in order}
    return measured[0], measured[1]


def _measure(tree: Path, benchmark: Sequence[str]) -> list[Row]:
    results = tree / "benchmarks" / "results"
    shutil.rmtree(results, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": f"{tree / 'src'}:{tree}"}
    command = [sys.executable, "-m", "benchmarks", *benchmark, "--save"]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    (saved,) = results.glob("*.json")
    rows: list[Row] = json.loads(saved.read_text())["rows"]
    return rows


def _ratios(pairs: Sequence[tuple[Row, Row]], columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """For one row of the benchmark: a row of ratios for each column that both commits have."""
    first, second = pairs[0]
    case = {key: value for key, value in first.items() if isinstance(value, str | int) and second.get(key) == value}
    for column in columns or [key for key, value in first.items() if isinstance(value, float)]:
        told = [(a.get(column), b.get(column)) for a, b in pairs]
        ratios = [b / a for a, b in told if a and b]
        if ratios:
            yield {
                "case": " ".join(f"{key}={value}" for key, value in case.items()),
                "column": column,
                "a": statistics.median(a for a, _ in told if a),
                "b": statistics.median(b for _, b in told if b),
                "ratio": statistics.median(ratios),
                "smallest": min(ratios),
                "largest": max(ratios),
            }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
