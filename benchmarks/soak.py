"""`python -m benchmarks soak --minutes N`: one long scan under random faults; memory, descriptors, threads and disk.

A pair of jobs is launched through the tunnel. Every few seconds a fault happens: a relay or a rank is killed, or a
relay, the producer or all ranks stand still for a while. Once a second every process of the pair is measured.

    process         what it is; ranks that were killed are separate processes
    lived_s         seconds of its life that were measured, after a warm-up
    rss_mib         memory at the end; rss_grew_mib: its slope times `lived_s`
    fds, threads    at the end; ..._grew: the slope times `lived_s`

The slope is the median of the slopes between all samples (Theil and Sen), so that a peak does not count as growth. The
exit code is 0 when the scan is complete in spite of the faults and nothing has grown, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import machine

RATE = 20  # projections per second
WARM_UP_S = 20.0
SHORTEST_S = 30.0
STILL_S = 3.0
# A process of Python moves by this much without a leak.
TOLERATED = {"rss_mib": 8.0, "fds": 2.0, "threads": 2.0}
TOLERATED_DISK_MIB = 8.0

WORDS = {
    "_relay_worker": "relay",
    "hang_watch": "hang watch",
    "watcher": "watcher",
    "produce": "producer",
    "recon": "rank",
    "launch": "launcher",
}


def main(argv: list[str]) -> int:
    """Run, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=12.0, help="mean seconds between faults; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        soak = Soak(Path(name), options.minutes, options.every, random.Random(options.seed))
        code = soak.run()
        told = soak.told(code)
    rows = soak.rows()
    machine.show(rows)
    print(json.dumps(told, indent=1))
    if options.save:
        print(machine.save("soak", argv, rows, busy=busy, **told))
    return 0 if code == 0 and told["complete"] and told["steady"] else 1


class Soak:
    """One launched pair, disturbed and measured until it ends."""

    def __init__(self, folder: Path, minutes: float, every_s: float, chance: random.Random) -> None:
        self._folder, self._minutes, self._every_s, self._chance = folder, minutes, every_s, chance
        self._samples: dict[tuple[str, int], list[tuple[float, ...]]] = defaultdict(list)
        self._disk_mib: list[tuple[float, float]] = []
        self.faults: Counter[str] = Counter()

    def run(self) -> int:
        """The pair's exit code."""
        (self._folder / "tmp").mkdir()
        with (self._folder / "log").open("w") as log:
            pair = subprocess.Popen(self._command(), env=self._environment(), stdout=log, stderr=subprocess.STDOUT)
            try:
                self._disturb(psutil.Process(pair.pid), pair)
            finally:
                pair.terminate()
                code = pair.wait()
        if code:
            print((self._folder / "log").read_text()[-4000:], file=sys.stderr)
        return code

    def rows(self) -> list[dict[str, Any]]:
        """One row for each process that lived long enough."""
        return [
            self._row(role, pid, np.array(samples))
            for (role, pid), samples in sorted(self._samples.items())
            if samples[-1][0] - samples[0][0] >= WARM_UP_S + SHORTEST_S
        ]

    def told(self, code: int) -> dict[str, Any]:
        """The outcome of the scan and of the disk."""
        summary = json.loads((self._folder / "out" / "summary.json").read_text()) if code in (0, 3) else {}
        disk = np.array(self._disk_mib)
        disk = disk[disk[:, 0] >= disk[0, 0] + WARM_UP_S] if len(disk) else disk
        grew_mib = _slope(disk[:, 0], disk[:, 1]) * (disk[-1, 0] - disk[0, 0]) if len(disk) > 1 else 0.0
        return {
            "exit_code": code,
            "complete": summary.get("complete", False),
            "projections": summary.get("projections", {}),
            "faults": dict(self.faults),
            "disk_mib": round(float(disk[-1, 1]), 1) if len(disk) else 0.0,
            "disk_grew_mib": round(grew_mib, 2),
            "steady": grew_mib < TOLERATED_DISK_MIB and all(row["steady"] for row in self.rows()),
        }

    # the pair

    def _command(self) -> list[str]:
        settings = {
            "source.rows": 8,
            "source.cols": 64,
            "source.projections": int(self._minutes * 60 * RATE),
            "producer.rate": float(RATE),
            "window.length": 60,
            "window.step": 20,
            "checkpoint.every_s": 10.0,
            "output.pictures": "false",
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        options = ["--ranks", "2", "--threads", "1", "--restarts", "100000", "--out", str(self._folder / "out")]
        return [sys.executable, "-m", "ministream", "launch", *words, *options]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self._folder / "tmp")}

    def _disturb(self, pair: psutil.Process, process: subprocess.Popen[bytes]) -> None:
        due = time.monotonic() + WARM_UP_S
        while process.poll() is None:
            found = self._measure(pair)
            if self._every_s and time.monotonic() >= due:
                self._fault(found)
                due = time.monotonic() + self._chance.expovariate(1 / self._every_s) + STILL_S
            time.sleep(1.0)

    def _measure(self, pair: psutil.Process) -> dict[str, list[int]]:
        """Measure every process; their pids by role."""
        now, found = time.monotonic(), defaultdict(list)
        processes = [pair]
        with suppress(psutil.Error):
            processes += pair.children(recursive=True)
        for process in processes:
            with suppress(psutil.Error):
                role = _role(process.cmdline())
                if role is None:
                    continue
                rss_mib = process.memory_info().rss / 2**20
                self._samples[role, process.pid].append((now, rss_mib, process.num_fds(), process.num_threads()))
                found[role].append(process.pid)
        self._disk_mib.append((now, _size_mib(self._folder)))
        return found

    def _fault(self, found: dict[str, list[int]]) -> None:
        def killed(role: str) -> None:
            _send(self._chance.choice(found[role]), signal.SIGKILL)

        def still(role: str) -> None:
            for pid in found[role]:
                _send(pid, signal.SIGSTOP)
            time.sleep(STILL_S)
            for pid in found[role]:
                _send(pid, signal.SIGCONT)

        faults: list[tuple[Callable[[str], None], str]] = [(killed, "relay"), (killed, "rank")]
        faults += [(still, role) for role in ("relay", "producer", "rank")]
        what, role = self._chance.choice([fault for fault in faults if found.get(fault[1])] or [(killed, "")])
        if role:
            self.faults[f"{role} {what.__name__}"] += 1
            what(role)

    def _row(self, role: str, pid: int, samples: np.ndarray) -> dict[str, Any]:
        samples = samples[samples[:, 0] >= samples[0, 0] + WARM_UP_S]
        lived_s = samples[-1, 0] - samples[0, 0]
        row: dict[str, Any] = {"process": role, "pid": pid, "lived_s": round(lived_s)}
        steady = True
        for column, (name, most) in enumerate(TOLERATED.items(), start=1):
            grew = _slope(samples[:, 0], samples[:, column]) * lived_s
            steady &= grew <= max(most, 0.05 * float(np.median(samples[:, column])))
            row |= {name: round(float(samples[-1, column]), 1), f"{name.partition('_')[0]}_grew": round(grew, 2)}
        return row | {"steady": bool(steady)}


def _role(words: list[str]) -> str | None:
    """What a process is by its command line; None for mpirun and shells."""
    if not any("ministream" in word for word in words) or words[0].endswith("mpirun"):
        return None
    return next((role for word, role in WORDS.items() if any(each.split(".")[-1] == word for each in words)), None)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _slope(times: np.ndarray, values: np.ndarray) -> float:
    """Median of the slopes between all pairs, of at most 400 samples."""
    step = max(1, len(times) // 400)
    times, values = times[::step], values[::step]
    first, second = np.triu_indices(len(times), 1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first])))


def _size_mib(folder: Path) -> float:
    """What the files of a folder take on disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_blocks * 512
    return total / 2**20
