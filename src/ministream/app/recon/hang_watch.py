"""Ends a job one of whose ranks hangs: stopped by a signal, or stuck in a file system that does not answer.

The other ranks wait for such a rank in MPI without end. One small process per node watches its ranks from outside, in
/proc: a thread of the rank itself cannot, since it stops with it, and HDF5 holds Python's lock while it writes. It
kills the rank, and with it, by mpirun or srun, the job.

A batch system that suspends a job stops the watching process too: its time does not count.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ministream import log

_LOG = log.get("ministream.app.recon.hang_watch")  # as a program it has another name

PERIOD_S = 1.0

# Time that a killed process stuck in the kernel gets before the program that started it is told to end the job.
_GRACE_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedRank:
    """One rank: its process on this node, and its number in the job."""

    pid: int
    rank: int
    ranks: int


class HangWatch:
    """The watching process of a node, as a context; it ends with this process, however that ends.

    It runs where `watched` holds the node's ranks, for `limit_s` > 0.
    """

    def __init__(self, watched: list[WatchedRank], limit_s: float) -> None:
        self._process: subprocess.Popen[str] | None = None
        if watched and limit_s > 0:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
            assert self._process.stdin is not None
            form = "json" if log.is_structured() else "text"
            told = {"limit_s": limit_s, "watched": [asdict(rank) for rank in watched], "log_format": form}
            self._process.stdin.write(json.dumps(told) + "\n")
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()


class Stillness:
    """How long a process has not moved, by what /proc says of its threads.

    A thread that waits for a disk moves as long as the kernel wakes it up, however slow the disk is.
    """

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._folder = proc / str(pid)
        self._since: dict[tuple[str, str], float] = {}

    def look(self, now: float) -> tuple[float, str]:
        """The seconds for which a thread is seen in one place, and why it does not move; 0 for none."""
        seen = self._stuck()
        self._since = {place: self._since.get(place, now) for place in seen}
        return max(((now - since, seen[place]) for place, since in self._since.items()), default=(0.0, ""))

    def _stuck(self) -> dict[tuple[str, str], str]:
        """The threads that are stopped or wait in the kernel: their number and switches, and the reason."""
        found = {}
        for task in (self._folder / "task").glob("*"):
            try:
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                if state == "T":
                    found[task.name, ""] = "stopped by a signal (SIGSTOP)"
                elif state == "D":
                    found[task.name, _switches(task)] = f"stuck in I/O ({_waits_in(task)})"
            except OSError:  # the thread has ended meanwhile
                continue
        return found


def _switches(task: Path) -> str:
    lines = (task / "status").read_text().splitlines()
    return " ".join(line.rpartition("\t")[2] for line in lines if "ctxt_switches" in line)


def _waits_in(task: Path) -> str:
    try:
        return (task / "wchan").read_text() or "unknown"
    except OSError:  # not every user may know
        return "unknown"


def main() -> None:
    """Watch the ranks named on standard input until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not (line := sys.stdin.readline()):
        return
    told = json.loads(line)
    log.setup("hang watch", form=told["log_format"])
    ranks = [WatchedRank(**each) for each in told["watched"]]
    _watch({rank: Stillness(rank.pid) for rank in ranks}, told["limit_s"])


def _watch(ranks: dict[WatchedRank, Stillness], limit_s: float) -> None:
    clock, before = 0.0, time.monotonic()
    while not select.select([sys.stdin], [], [], PERIOD_S)[0]:
        now = time.monotonic()
        # this process was stopped itself when more time has passed
        clock, before = clock + min(now - before, 2 * PERIOD_S), now
        for rank, stillness in ranks.items():
            seconds, why = stillness.look(clock)
            if seconds >= limit_s:
                _end(rank, f"{why} for {limit_s:g} s")
                return


def _end(rank: WatchedRank, why: str) -> None:
    """Say which rank it is, in the words of a rank that failed, and kill it."""
    _LOG.error("rank %d of %d on %s failed: %s", rank.rank, rank.ranks, os.uname().nodename, why)
    parent = _parent(rank.pid)
    _kill(rank.pid, signal.SIGKILL)
    # the launcher learns of the end of a process from the kernel, which keeps one that is stuck
    if parent > 1 and not select.select([sys.stdin], [], [], _GRACE_S)[0] and _parent(rank.pid):
        _kill(parent, signal.SIGTERM)


def _parent(pid: int) -> int:
    """The process that started `pid`; 0 once that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[1])


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError) as error:
        _LOG.error("process %d cannot be signalled: %s", pid, error.strerror)


if __name__ == "__main__":
    main()
