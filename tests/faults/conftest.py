"""Faults on purpose: real processes on two hosts, a cable that comes out, programs that stop, bytes that change.

Every test asserts the volume of a run that nothing disturbed, or that what is missing is counted and said.
MINISTREAM_FAULTS=long runs each fault for as long as is promised.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.link import HOSTS, available, linked
from tests.faults.scans import Pair, volume
from tests.integration.jobs import MINISTREAM, Lab, lab

LONG = os.environ.get("MINISTREAM_FAULTS") == "long"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the short form the tests marked `long` do not run."""
    for item in items:
        if not LONG and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long form: MINISTREAM_FAULTS=long"))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Lab]:
    """Starts jobs in the test's folder; none of their processes may be left at its end."""
    with lab(tmp_path) as started:
        yield started


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The option that names credentials for gateways on both hosts and on loopback."""
    folder = tmp_path_factory.mktemp("credentials") / "both"
    hosts = [word for address in (*HOSTS.values(), "127.0.0.1") for word in ("--host", address)]
    subprocess.run([*MINISTREAM, "certs", "init", str(folder), *hosts], check=True, capture_output=True)
    return ["--credentials", str(folder)]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The volume of the scan when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with lab(folder) as jobs:
        pair = Pair(jobs).directly()
        pair.assert_complete()
    return volume(folder / "out")


@pytest.fixture
def link() -> Iterator[object]:
    """Two hosts with a good cable."""
    if not available():
        pytest.skip("network namespaces need root")
    with linked() as both:
        yield both
