"""Whole pairs of jobs as benchmarks run them: a recorded scan of random counts, played once to a reconstruction."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pair to measure. `n` detector columns, `rows` detector rows, and the window as in the job's configuration."""

    n: int
    rows: int
    ranks: int
    threads: int
    projections: int
    length: int
    step: int
    iterations: int

    @property
    def name(self) -> str:
        """All numbers of the case, as a file name."""
        return "-".join(f"{key[0] if key != 'rows' else 's'}{value}" for key, value in asdict(self).items())

    @property
    def cores(self) -> int:
        """Threads that compute."""
        return self.ranks * self.threads

    @property
    def pixel_updates(self) -> float:
        """N² × projections × slices × iterations over all updates of the window, the last one included."""
        held = [min(fed, self.length) for fed in range(self.step, self.projections + 1, self.step)]
        if self.projections % self.step:
            held.append(min(self.projections, self.length))
        return float(self.n) ** 2 * self.rows * self.iterations * sum(held)

    def settings(self) -> dict[str, object]:
        """The configuration keys that make a job of it."""
        return {
            "window.length": self.length,
            "window.step": self.step,
            "window.iterations": self.iterations,
            "output.pictures": "false",
        }


def make_scan(path: Path, case: Case) -> Path:
    """A DXchange file with the case's shape: counts of uniform noise, which cost as much as any sample."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, count, low in (("data", case.projections, 9000), ("data_white", 4, 20000), ("data_dark", 4, 50)):
            data = file.create_dataset(f"exchange/{name}", (count, case.rows, case.n), np.uint16)
            for k in range(count):
                data[k] = random.integers(low, low + 1000, (case.rows, case.n), np.uint16)
        file["exchange/theta"] = np.linspace(0, 180, case.projections, endpoint=False)
    return path


def run(
    case: Case,
    launch_options: list[str],
    timeout_s: float,
    more: Mapping[str, object] | None = None,
    beside: Callable[[Path], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """The summary of one pair, launched as a user does it, through the tunnel; `more` are keys of its configuration.

    `beside` is entered with the pair's output folder while it runs.

    Raises CalledProcessError when the pair fails, TimeoutExpired when it hangs.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        scan = make_scan(folder / "scan.h5", case)
        settings = " ".join(f"--set {key}={value}" for key, value in (case.settings() | dict(more or {})).items())
        command = [sys.executable, "-m", "ministream", "launch", "--out", str(folder / "out")]
        command += ["--ranks", str(case.ranks), "--threads", str(case.threads)]
        command += ["--producer-options", f"--file {scan}", "--recon-options", settings, *launch_options]
        try:
            with beside(folder / "out"):
                subprocess.run(command, check=True, timeout=timeout_s, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            raise
        summary: dict[str, Any] = json.loads((folder / "out" / "summary.json").read_text())
        return summary


def stages(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum over the ranks of the seconds in each stage."""
    ranks = summary["stages_per_rank"]
    names = sorted({name for rank in ranks for name in rank})
    seconds = {name: [rank.get(name, 0.0) for rank in ranks] for name in names}
    return {name: spread(values) for name, values in seconds.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum over the ranks."""
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
