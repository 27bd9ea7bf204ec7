"""The cluster itself: MPI across nodes, exit codes, and nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.slurm.lab import Lab

RANKS = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.allreduce(c.rank), MPI.Get_processor_name())"


def test_srun_starts_the_ranks_of_one_mpi_job_on_both_nodes(lab: Lab) -> None:
    ran = lab.run("srun", "--mpi=pmix", "-N2", "-n4", sys.executable, "-c", RANKS)
    assert ran.returncode == 0, ran.stderr
    sums, hosts = zip(*(line.split() for line in ran.stdout.splitlines()), strict=True)
    assert sums == ("6",) * 4
    assert len(set(hosts)) == (2 if lab.networks else 1)


def test_sbatch_wait_passes_the_exit_code_on(lab: Lab) -> None:
    ran = lab.run("sbatch", "--wait", "--output=/dev/null", "--wrap=exit 3")
    assert ran.returncode == 3


def test_a_lab_leaves_nothing_behind() -> None:
    with Lab(nodes=1) as lab:
        home = lab.home
        lab.run("sbatch", "--output=/dev/null", "--wrap=sleep 1000")
    assert not home.exists()
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if str(home) in _command(pid)]
    assert not lab.steps()


def _command(pid: Path) -> str:
    try:
        return (pid / "cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
