"""Metadata of every result: the machine, the commit, the command line, and whether the machine was quiet."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "mpi4py", "h5py", "pyzmq", "ministream")

# Busy cores, besides this process, above which timings are dominated by other processes.
QUIET_CORES = 0.1


def describe() -> dict[str, Any]:
    """The machine as a reader of a result needs it: processor, cores, caches, memory, system, versions."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "l2_kib": _cache_kib(2),
        "l3_kib": _cache_kib(3),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The commit that was measured, with `-dirty` where tracked source files differ from it."""
    top = Path(__file__).parent
    words = ("describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    found = subprocess.run(["git", "-C", top, *words], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def busy_cores(seconds: float = 0.5) -> float:
    """Number of cores that other processes keep busy while this one sleeps."""
    before, started = _busy_ticks(), time.perf_counter()
    time.sleep(seconds)
    elapsed = time.perf_counter() - started
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / elapsed


def warn_unless_quiet() -> float:
    """Warn on standard error when other processes use the machine; returns the cores that they keep busy."""
    busy = busy_cores()
    if busy > QUIET_CORES:
        print(f"warning: other processes keep {busy:.1f} cores busy, timings are not trustworthy", file=sys.stderr)
    return busy


def heading(benchmark: str, argv: Sequence[str], busy: float) -> dict[str, Any]:
    """Heading of a benchmark's rows: name, command, date, commit, machine, quietness."""
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", "benchmarks", benchmark, *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": describe(),
        "busy_cores_before": round(busy, 2),
        "quiet": busy <= QUIET_CORES,
    }


def save(
    benchmark: str,
    argv: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    busy: float,
    folder: Path = RESULTS,
    **more: Any,
) -> Path:
    """Write `rows`, one JSON object each, under their heading to FOLDER/<benchmark>-<date>.json; returns the file.

    `more` joins the heading. A second run on one day replaces the first.
    """
    document = heading(benchmark, argv, busy) | more
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{benchmark}-{document['date'][:10]}.json"
    file.write_text(json.dumps(document, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n')
    return file


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as an aligned table; the columns are the keys of the first row."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _first(file: str, key: str) -> str | None:
    lines = Path(file).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _cache_kib(level: int) -> int | None:
    """KiB of the first cache of a level that core 0 sees."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == str(level):
            return int((index / "size").read_text().strip().rstrip("K"))
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _busy_ticks() -> int:
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, *interrupts_and_steal = ticks[:8]
    return user + nice + system + sum(interrupts_and_steal)
