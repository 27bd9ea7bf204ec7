"""One small cluster for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import Lab, missing_programs


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two nodes on this host; where Slurm is not installed the tests skip, in CI they fail."""
    missing = missing_programs()
    if missing:
        reason = f"no {', '.join(missing)}: install slurmctld slurmd slurm-client munge"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Lab() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def networked_lab() -> Iterator[Lab]:
    """Two nodes with a network and a host name each; needs root."""
    if missing_programs() or os.geteuid() != 0:
        pytest.skip("networks of their own for the nodes need root and Slurm")
    with Lab(networks=True) as cluster:
        yield cluster
