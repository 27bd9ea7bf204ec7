"""The cable between the hosts: pulled out and put back, slow and lossy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.faults.link import Link, available, linked
from tests.faults.scans import Pair, last, volume
from tests.integration.jobs import Lab

long = pytest.mark.long


@pytest.mark.parametrize("seconds", [5, pytest.param(1, marks=long), pytest.param(25, marks=long)])
@pytest.mark.parametrize("tunnel", [True, pytest.param(False, marks=long)])
def test_a_cable_that_comes_out_costs_nothing(
    jobs: Lab, link: Link, credentials: list[str], undisturbed: NDArray[np.float32], tunnel: bool, seconds: float
) -> None:
    pair = Pair(jobs, link)
    (pair.tunnelled(credentials) if tunnel else pair.directly()).until_streaming()
    link.cut()
    last(seconds)
    link.mend()
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)


@pytest.mark.skipif(not available(), reason="network namespaces need root")
def test_a_slow_and_lossy_path_costs_nothing(
    jobs: Lab, credentials: list[str], undisturbed: NDArray[np.float32]
) -> None:
    with linked(delay_s=0.05, loss=0.01) as link:
        pair = Pair(jobs, link).tunnelled(credentials)
        pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)
