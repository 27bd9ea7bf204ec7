"""A rank that does not move is seen from outside, named and killed; one that is only slow is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ministream.app.recon.hang_watch import HangWatch, Stillness, WatchedRank
from tests.waiting import eventually


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def watched(process: subprocess.Popen[bytes]) -> list[WatchedRank]:
    return [WatchedRank(pid=os.getpid(), rank=0, ranks=2), WatchedRank(pid=process.pid, rank=1, ranks=2)]


def test_a_stopped_rank_is_named_and_killed(sleeper, capfd):
    with HangWatch(watched(sleeper), 0.5):
        sleeper.send_signal(signal.SIGSTOP)
        assert sleeper.wait(60) == -signal.SIGKILL
    line = capfd.readouterr().err.splitlines()[-1]
    assert f"rank 1 of 2 on {os.uname().nodename} failed: stopped by a signal (SIGSTOP) for" in line


def test_it_ends_with_the_process_that_started_it(sleeper):
    started = (
        "import os, signal; from ministream.app.recon.hang_watch import *; "
        f"watch = HangWatch([WatchedRank(pid={sleeper.pid}, rank=0, ranks=1)], 60.0); "
        "print(watch._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", started], stdout=subprocess.PIPE, text=True, check=False).stdout
    eventually(lambda: not Path(f"/proc/{int(told)}").exists())
    assert sleeper.poll() is None


def test_without_a_limit_nothing_watches(sleeper):
    with HangWatch(watched(sleeper), 0.0) as watch:
        assert watch._process is None


def test_one_that_runs_or_was_let_go_again_is_left_alone(sleeper):
    stillness = Stillness(sleeper.pid)
    assert stillness.look(0.0) == (0.0, "")
    sleeper.send_signal(signal.SIGSTOP)
    eventually(lambda: stillness.look(1.0)[1])
    assert stillness.look(9.0)[0] == 8.0
    sleeper.send_signal(signal.SIGCONT)
    eventually(lambda: not stillness.look(9.0)[1])
    assert stillness.look(99.0) == (0.0, "")


def test_a_thread_that_waits_for_a_disk_moves_as_long_as_it_is_woken_up(tmp_path):
    """No file system of a test machine can be made to hang: the kernel's files are written here."""
    task = tmp_path / "7" / "task" / "8"
    task.mkdir(parents=True)
    (task / "stat").write_text("8 (a) name) D 1 1 1")
    (task / "wchan").write_text("nfs_wait")

    def switched(times: int) -> None:
        (task / "status").write_text(f"voluntary_ctxt_switches:\t{times}\nnonvoluntary_ctxt_switches:\t3\n")

    stillness = Stillness(7, tmp_path)
    for now in range(50):
        switched(now)
        assert stillness.look(now)[0] == 0.0
    assert stillness.look(60) == (11.0, "stuck in I/O (nfs_wait)")
