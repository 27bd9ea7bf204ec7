"""Under mpirun one rank that fails before a collective would leave the others waiting: end them all, and say why."""

from __future__ import annotations

import faulthandler
import os
import sys

import pytest

from ministream.parallel import mpi
from tests.conftest import REAL_STDERR

WATCHDOG_S = 120


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and mpi.world().size > 1:
        print(f"\nrank {mpi.world().rank}: {item.nodeid} failed\n{report.longreprtext}", file=sys.stderr, flush=True)
        mpi.world().raw.Abort(1)


@pytest.fixture(autouse=True)
def watchdog(request):
    """A deadlock of the ranks must end the run with every rank's traceback."""
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True, file=request.config.stash[REAL_STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def comm():
    """The communicator of all ranks, after checking that the launcher really started them."""
    launched = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE")
    return mpi.world(int(launched) if launched else None)


@pytest.fixture
def shared_tmp(comm, tmp_path_factory):
    """One temporary folder for all ranks."""
    return comm.bcast(tmp_path_factory.mktemp("ranks") if comm.rank == 0 else None)
