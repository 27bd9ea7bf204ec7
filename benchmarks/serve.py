"""`python -m benchmarks serve`: how soon a standing reconstruction job shows the next scan.

`ministream serve` takes scans one after another, each as long as the window, from producers that come and go. Of each:

    scan            its number; the first one also brings what is loaded once
    first_update_s  age of the newest projection of the first window when the image with it is there
    between_s       from the volume of the scan before to the start of this one: a producer's start, and the connection
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from ministream.app.placement import granted, mpirun

MINISTREAM = [sys.executable, "-P", "-m", "ministream"]


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--n", type=int, default=256, help="detector columns")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--window", type=int, default=90, help="projections in the window, and in each scan")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = _measure(Path(folder), options)
    machine.show(rows)
    if options.save:
        print(machine.save("serve", argv, rows, busy=busy))
    return 0


def _measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    shape = {"rows": options.rows, "cols": options.n, "projections": options.window}
    source = _settings({f"source.{key}": value for key, value in shape.items()})
    window = {"window.length": options.window, "window.step": options.window, "output.pictures": "false"}
    grant = granted()
    launcher, env = mpirun(options.ranks, grant.threads(options.ranks), grant)
    command = [*launcher, *MINISTREAM, "serve", "--connect", address, "--scans", str(options.scans)]
    command += ["--ranks", str(options.ranks), "--out", str(folder), *_settings(window)]
    with subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL) as service:
        for _ in range(options.scans):
            subprocess.run([*MINISTREAM, "produce", *source, "--listen", address], check=True, capture_output=True)
        if service.wait():
            raise SystemExit(f"the service ended with exit code {service.returncode}")
    return [_row(folder, number) for number in range(1, options.scans + 1)]


def _row(folder: Path, number: int) -> dict[str, Any]:
    path = folder / f"{number:04d}" / "summary.json"
    summary = json.loads(path.read_text())
    row = {"scan": number, "first_update_s": summary["latency_s"]["p50"], "between_s": None}
    before = folder / f"{number - 1:04d}" / "recon.h5"
    if before.exists():
        begun_s = path.stat().st_mtime - summary["seconds"]
        row["between_s"] = begun_s - before.stat().st_mtime
    return row


def _settings(values: dict[str, Any]) -> Sequence[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
