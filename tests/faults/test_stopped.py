"""Programs that stand still for a while, as under a debugger, a full swap or a suspended batch job."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.faults.scans import Pair, last, processes_of, stopped, volume
from tests.integration.jobs import Lab

long = pytest.mark.long


@pytest.mark.parametrize("seconds", [5, pytest.param(20, marks=long)])
@pytest.mark.parametrize("who", ["producer", "producer's relay", "reconstruction's relay", "ranks"])
def test_a_program_that_stands_still_costs_nothing(
    jobs: Lab, credentials: list[str], undisturbed: NDArray[np.float32], who: str, seconds: float
) -> None:
    # ranks that stand still longer than this end the job
    pair = Pair(jobs).tunnelled(credentials, recon=("--set", "recon.hang_timeout_s=60")).until_streaming()
    still = {
        "producer": lambda: [pair.producer.process.pid],
        "producer's relay": lambda: processes_of(pair.producer, "relay_worker"),
        "reconstruction's relay": lambda: processes_of(pair.recon, "relay_worker"),
        "ranks": lambda: processes_of(pair.recon, "recon"),
    }[who]()
    assert still
    with stopped(*still):
        last(seconds)
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)
