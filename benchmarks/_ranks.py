"""Benchmarks under MPI: a benchmark restarts itself as ranks, and rank 0 returns its rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ministream.app import placement
from ministream.app.launch import plan

_RESULT = "MINISTREAM_BENCHMARK_ROWS"


def inside() -> bool:
    """Whether this process is one of the ranks that `start` started."""
    return _RESULT in os.environ


def start(benchmark: str, argv: Sequence[str], ranks: int, timeout_s: float = 3600) -> list[dict[str, Any]]:
    """Run `python -m benchmarks BENCHMARK argv` as ranks on this machine; the rows that rank 0 handed back.

    Raises CalledProcessError when a rank fails, TimeoutExpired when they hang.
    """
    words, env = placement.mpirun(ranks, 1, placement.granted())
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        subprocess.run(
            [*words, sys.executable, "-m", "benchmarks", benchmark, *argv],
            env={**os.environ, **plan.ONE_THREAD, **env, _RESULT: str(rows)},
            check=True,
            timeout=timeout_s,
        )
        found: list[dict[str, Any]] = json.loads(rows.read_text())
        return found


def hand_back(rows: Sequence[Mapping[str, Any]]) -> None:
    """Called by rank 0 at the end."""
    Path(os.environ[_RESULT]).write_text(json.dumps(list(rows)))
