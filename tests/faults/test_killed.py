"""Programs that are killed: what belongs to them ends, and what is missing is said."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.faults.scans import Pair, processes_of, volume
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


def test_a_killed_rank_ends_the_whole_job(jobs: Lab) -> None:
    pair = Pair(jobs).directly().until_streaming()
    os.kill(processes_of(pair.recon, "recon")[-1], signal.SIGKILL)
    assert pair.recon.wait() != 0
    pair.producer.signal(signal.SIGTERM)
    pair.producer.wait()


def test_a_killed_producer_leaves_an_incomplete_volume(jobs: Lab, credentials: list[str]) -> None:
    pair = Pair(jobs).tunnelled(credentials, recon=("--outage-timeout", "3")).until_streaming()
    os.kill(pair.producer.process.pid, signal.SIGKILL)
    assert pair.recon.wait() == 3, pair.text
    assert not jobs.summary()["complete"]
    assert (jobs.out / "recon.h5").exists()
