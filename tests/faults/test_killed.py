"""Programs that are killed: what belongs to them ends, and what is missing is said."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest
from numpy.typing import NDArray

from ministream.storage import checkpoints
from tests.faults.scans import Pair, assert_close, processes_of, rank_of, volume
from tests.integration.jobs import Lab


@pytest.mark.parametrize("side", ["producer", "recon"])
def test_a_killed_relay_costs_nothing(
    jobs: Lab, credentials: list[str], undisturbed: NDArray[np.float32], side: str
) -> None:
    pair = Pair(jobs).tunnelled(credentials).until_streaming()
    for pid in processes_of(getattr(pair, side), "relay_worker"):
        os.kill(pid, signal.SIGKILL)
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_rank_ends_a_job_without_a_launcher_and_a_resumed_one_gets_the_same_volume(
    jobs: Lab, undisturbed: NDArray[np.float32], rank: int
) -> None:
    pair = Pair(jobs).directly(recon=("--set", "checkpoint.every_updates=1"))
    pair.recon.until(lambda: checkpoints(jobs.out / "checkpoint"))
    os.kill(rank_of(pair.recon, rank), signal.SIGKILL)
    assert pair.recon.wait(30) != 0
    said = rf"process rank {rank} with PID \d+ on node {os.uname().nodename} exited on signal 9"
    assert len(re.findall(said, pair.recon.text)) == 1, pair.recon.text
    address = jobs.announced("producer", pair.producer)["data"]
    pair.reconstruct("--connect", address, "--resume", str(jobs.out / "checkpoint"))
    pair.assert_complete()
    assert "resumed from" in pair.recon.text
    assert_close(volume(jobs.out), undisturbed)


def test_a_rank_killed_while_starting_ends_the_job(jobs: Lab) -> None:
    pair = Pair(jobs)
    pair.reconstruct("--connect", "tcp://127.0.0.1:9")
    pair.recon.until(lambda: processes_of(pair.recon, "recon"))
    os.kill(processes_of(pair.recon, "recon")[0], signal.SIGKILL)
    assert pair.recon.wait(30) != 0


def test_a_killed_producer_leaves_an_incomplete_volume(jobs: Lab, credentials: list[str]) -> None:
    pair = Pair(jobs).tunnelled(credentials, recon=("--outage-timeout", "3")).until_streaming()
    os.kill(pair.producer.process.pid, signal.SIGKILL)
    assert pair.recon.wait() == 3, pair.text
    assert not jobs.summary()["complete"]
    assert (jobs.out / "recon.h5").exists()
