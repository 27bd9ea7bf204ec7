"""Jobs, echoing producers and credentials for every test of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ministream.tunnel.credentials import Credentials
from tests.integration.jobs import Lab, lab
from tests.integration.tunnel_ends import Echo, echoing, make_credentials
from tests.integration.warm_jobs import WarmPair, warm_pair


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Lab]:
    """Starts jobs in the test's folder; none of their processes may be left at its end."""
    with lab(tmp_path) as started:
        yield started


@pytest.fixture
def producer() -> Iterator[Echo]:
    """A producer's data socket that sends back what it gets."""
    with echoing() as echo:
        yield echo


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """A gateway's credentials and those of its client `operator`."""
    return make_credentials(tmp_path_factory.mktemp("credentials") / "d", "operator", "mallory")


@pytest.fixture(scope="session")
def mallory(secrets: Credentials) -> Credentials:
    """Another client of the same authority."""
    return Credentials.load(secrets.directory.parent / "mallory")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPair]:
    """A producer and a reconstruction process for many short scans, in a folder that is not the scans'."""
    with warm_pair(tmp_path_factory.mktemp("warm")) as pair:
        yield pair
