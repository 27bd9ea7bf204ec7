"""One small cluster for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm.lab import Lab, missing_programs


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two nodes on this host, for root with a network and a host name each.

    Where Slurm is not installed the tests skip; in CI they fail.
    """
    missing = missing_programs()
    if missing:
        reason = f"no {', '.join(missing)}: install slurmctld slurmd slurm-client munge"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Lab(networks=os.geteuid() == 0) as cluster:
        yield cluster
