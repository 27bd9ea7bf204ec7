"""Children are watched, signalled and never left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ministream.app.launch.processes import Child, session_members
from ministream.errors import MachineError
from tests.waiting import eventually


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def assert_gone(pid: int) -> None:
    eventually(lambda: not alive(pid), f"process {pid} is still there")


def pid_in(file: Path) -> int:
    eventually(lambda: file.exists() and file.read_text().strip(), f"{file} never came")
    return int(file.read_text())


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
    line = "12:00:00 E rank 3 ministream.parallel.mpi: rank 3 of 4 failed: disk full"
    with Child("a job", ["sh", "-c", f"echo '{line}' >&2; echo mpirun noticed >&2; exit 5"]) as child:
        assert child.wait(5) == 5
        assert child.explanation == "rank 3 of 4 failed: disk full"


def test_a_signal_becomes_an_exit_code() -> None:
    with Child("a job", ["sleep", "60"]) as child:
        child.signal(signal.SIGUSR1)
        assert child.wait(5) == 128 + signal.SIGUSR1


def test_a_deaf_child_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with Child("a job", ["sh", "-c", f"trap '' TERM; echo $$ > {note}; while :; do sleep 60; done"]) as child:
        pid_in(note)
        assert child.end(0.2) == 128 + signal.SIGKILL


def test_what_a_child_leaves_in_its_session_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with Child("a job", ["sh", "-c", f"sleep 60 & echo $! > {note}; exit 0"]) as child:
        assert child.wait(5) == 0
        left = pid_in(note)
        assert alive(left)
        child.end(0.0)
    assert_gone(left)


def test_a_killed_child_is_explained_by_its_signal() -> None:
    with Child("a job", ["sleep", "60"]) as child:
        child.signal(signal.SIGKILL)
        assert child.wait(5) == 128 + signal.SIGKILL
        assert child.explanation == "killed by SIGKILL"
        assert child.crashed


def test_an_orderly_end_is_no_crash() -> None:
    with Child("a job", ["sh", "-c", "echo 'ministream: no beam' >&2; exit 4"]) as child:
        assert child.wait(5) == 4
        assert not child.crashed


def test_a_missing_program_is_named() -> None:
    with pytest.raises(MachineError, match="a job: no program /no/such/program"):
        Child("a job", ["/no/such/program"])


def test_session_members_are_found() -> None:
    assert os.getpid() in session_members(os.getsid(0))
