"""Children are watched, signalled and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ministream.app.launch.processes import Child, session_members
from ministream.errors import MachineError


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 5) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def pid_in(file: Path) -> int:
    for _ in range(100):
        if file.exists() and file.read_text().strip():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{file} never came")


def test_exit_code_and_explanation() -> None:
    with Child(
        "a job", ["sh", "-c", "echo first >&2; echo 'ministream: no beam' >&2; echo noise >&2; exit 3"]
    ) as child:
        assert child.wait(5) == 3
        assert child.explanation == "no beam"


def test_without_a_word_of_ours_the_last_line_explains() -> None:
    with Child("a job", ["sh", "-c", "echo 'srun: error: no nodes' >&2; exit 1"]) as child:
        assert child.wait(5) == 1
        assert child.explanation == "srun: error: no nodes"


def test_a_rank_that_aborts_the_job_explains() -> None:
    line = "12:00:00 E rank 3 ministream.parallel.mpi: rank 3 of 4 failed, ending the job: disk full"
    with Child("a job", ["sh", "-c", f"echo '{line}' >&2; echo mpirun noticed >&2; exit 5"]) as child:
        assert child.wait(5) == 5
        assert child.explanation == "rank 3 of 4 failed, ending the job: disk full"


def test_a_signal_becomes_an_exit_code() -> None:
    with Child("a job", ["sleep", "60"]) as child:
        child.signal(signal.SIGUSR1)
        assert child.wait(5) == 128 + signal.SIGUSR1


def test_a_deaf_child_is_killed() -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with Child("a job", [sys.executable, "-c", script]) as child:
        time.sleep(0.5)
        assert child.end(0.2) == 128 + signal.SIGKILL


def test_what_a_child_leaves_in_its_session_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with Child("a job", ["sh", "-c", f"sleep 60 & echo $! > {note}; exit 0"]) as child:
        assert child.wait(5) == 0
        left = pid_in(note)
        assert alive(left)
        child.end(0.0)
    assert gone(left)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(MachineError, match="a job: no program /no/such/program"):
        Child("a job", ["/no/such/program"])


def test_a_child_ends_when_its_launcher_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        "import sys, time\nfrom ministream.app.launch.processes import Child\n"
        f"child = Child('a job', ['sh', '-c', 'echo $$ > {note}; exec sleep 60'])\ntime.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script])
    child = pid_in(note)
    launcher.kill()
    launcher.wait()
    if not gone(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child outlived its launcher")


def test_session_members_are_found() -> None:
    assert os.getpid() in session_members(os.getsid(0))
