"""A launcher that is killed at any moment: all that it started ends, and it leaves no folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.scans import RATE, SCAN, WINDOW
from tests.integration.jobs import MINISTREAM, Job, Lab, alive
from tests.waiting import eventually

GONE_S = 10.0
long = pytest.mark.long


def descendants(pid: int) -> set[int]:
    """Every process that comes from one."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = {int(child) for thread in threads for child in (thread / "children").read_text().split()}
    except OSError:  # it has ended meanwhile
        return set()
    return children.union(*map(descendants, children))


def running(pids: set[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return sorted(found)


def folders(jobs: Lab) -> list[str]:
    """What the product left in the temporary folder."""
    return [path.name for path in jobs.temporary.iterdir() if path.name.startswith(("ministream-", "s2cs-"))]


def kill(jobs: Lab, job: Job) -> None:
    """Kill a job's first process, and see all others end."""
    others = descendants(job.process.pid)
    os.kill(job.process.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    eventually(lambda: not running(others), lambda: f"still running: {running(others)}", limit_s=GONE_S)
    eventually(lambda: not folders(jobs), lambda: f"left behind: {folders(jobs)}", limit_s=GONE_S)


MOMENTS: dict[str, Callable[[Lab, Job], object]] = {
    "before the jobs start": lambda jobs, _job: folders(jobs),
    "while they start": lambda _jobs, job: "listens on" in job.text,
    "while the tunnel is opened": lambda _jobs, job: "found the producer job" in job.text,
    "while the volume is written": lambda _jobs, job: "end of the stream" in job.text,
}


LATER = [pytest.param(moment, marks=long) for moment in list(MOMENTS)[2:]]


@pytest.mark.parametrize("moment", [*list(MOMENTS)[:2], *LATER])
def test_a_launcher_that_is_killed_leaves_nothing(jobs: Lab, moment: str) -> None:
    settings = [word for setting in [*SCAN, f"producer.rate={4 * RATE}"] for word in ("--set", setting)]
    recon = "--recon-options=" + " ".join(WINDOW)
    job = jobs.start("launch", [*MINISTREAM, "launch", *settings, "--ranks", "2", "--out", str(jobs.out), recon])
    job.until(lambda: MOMENTS[moment](jobs, job))
    kill(jobs, job)
    assert not alive(job.process.pid)
