"""A launcher of another MPI starts separate jobs of one rank: noticed and refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ministream.parallel.mpi import launcher_ranks

WORLD = "from ministream.parallel import mpi; import sys; print(mpi.world(*map(int, sys.argv[1:])).size)"
VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def world(*command: str, ranks: tuple[str, ...] = (), **settings: str) -> subprocess.CompletedProcess[str]:
    """The communicator of all ranks in a new process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMI", "SLURM_"))}
    return subprocess.run(
        [*command, sys.executable, "-c", WORLD, *ranks],
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", VARIABLES)
def test_the_processes_that_each_launcher_says(name: str) -> None:
    assert launcher_ranks({name: "2", "HOME": "/"}) == {name: 2}
    assert launcher_ranks({name: "two"}) == {}


def test_jobs_of_one_rank_are_refused_where_several_were_started() -> None:
    # of the launchers' variables only this one is read by no MPI itself
    done = world(MV2_COMM_WORLD_SIZE="2")
    assert done.returncode != 0
    assert "ConfigError: MV2_COMM_WORLD_SIZE=2: the launcher has started 2 processes" in done.stderr
    assert world(MV2_COMM_WORLD_SIZE="1").stdout.split() == ["1"]
    assert world(ranks=("1",), MV2_COMM_WORLD_SIZE="2").stdout.split() == ["1"], "--ranks 1 says that it is meant"


@pytest.mark.skipif(shutil.which("mpiexec.hydra") is None, reason="needs MPICH's launcher beside Open MPI")
def test_the_launcher_of_another_mpi_is_noticed() -> None:
    if "Open MPI" not in subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("the tests run with MPICH")
    done = world("mpiexec.hydra", "-n", "2")
    assert done.returncode != 0
    assert "PMI_SIZE=2: the launcher has started 2 processes" in done.stderr
