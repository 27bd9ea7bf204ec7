"""What is granted, and how ranks and threads are laid on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ministream.app.launch.plan import share
from ministream.app.placement import (
    CoreGrant,
    Place,
    describe,
    granted,
    mpirun,
    nodes_of_job,
    parse_list,
    parse_quota,
    physical,
)


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("0\n", {0}), ("0-3", {0, 1, 2, 3}), ("0-1,8,10-11\n", {0, 1, 8, 10, 11})]
)
def test_kernel_lists(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


@pytest.mark.parametrize(("text", "cores"), [("max 100000", None), ("250000 100000\n", 2.5)])
def test_cgroup_quotas(text: str, cores: float | None) -> None:
    assert parse_quota(text) == cores


@pytest.mark.parametrize(
    ("grant", "cores", "ranks"),
    [
        (CoreGrant(domains=(8,)), 8, 1),
        (CoreGrant(domains=(32, 32)), 64, 2),
        (CoreGrant(domains=(8, 8), quota=3.7), 3, 2),
        (CoreGrant(domains=(8, 8), quota=0.5), 1, 1),
        (CoreGrant(domains=(1, 1, 1, 1)), 4, 4),
    ],
)
def test_cores_and_ranks_of_a_grant(grant: CoreGrant, cores: int, ranks: int) -> None:
    assert (grant.cores, grant.ranks) == (cores, ranks)
    assert ranks * grant.threads(ranks) <= cores


@pytest.mark.parametrize(
    ("asked", "shared"), [((0, 0), (2, 8)), ((4, 0), (4, 4)), ((4, 2), (4, 2)), ((32, 0), (32, 1)), ((0, 1), (2, 1))]
)
def test_sharing_a_machine_of_two_domains(asked: tuple[int, int], shared: tuple[int, int]) -> None:
    assert share(CoreGrant(domains=(8, 8)), *asked) == shared


def test_this_machine_grants_its_affinity() -> None:
    grant = granted()
    assert sum(grant.domains) == len(physical(os.sched_getaffinity(0)))
    assert 1 <= grant.ranks <= grant.cores


def test_an_affinity_narrower_than_the_machine_is_seen() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    code = "from ministream.app.placement import granted; g = granted(); print(g.cores, g.whole)"
    cpu = str(min(os.sched_getaffinity(0)))
    told = subprocess.run(
        ["taskset", "-c", cpu, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["1", "False"]


@pytest.mark.parametrize(("ranks", "threads"), [(1, 0), (2, 0), (4, 1)])
def test_ranks_get_the_cores_that_they_were_meant_to_have(ranks: int, threads: int) -> None:
    grant = granted()
    threads = threads or grant.threads(ranks)
    words, env = mpirun(ranks, threads, grant)
    code = "import os; os.write(1, b'%d\\n' % len(os.sched_getaffinity(0)))"
    told = subprocess.run(
        [*words, sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seen = [int(line) for line in told.stdout.split()]
    assert len(seen) == ranks
    assert all(cores >= min(threads, grant.cores) for cores in seen)


def test_on_one_node_of_slurm_the_cores_count_and_not_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    grant = granted()
    assert "OMPI_MCA_ras" not in mpirun(2, 1, grant)[1]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert "OMPI_MCA_ras" not in mpirun(2, 1, grant)[1]
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert mpirun(2, 1, grant)[1]["OMPI_MCA_ras"] == "^slurm"


def place(node: str, cores: set[int], threads: int) -> Place:
    return Place(node=node, cores=frozenset(cores), threads=threads)


def test_places_of_ranks_are_told_in_one_line() -> None:
    places = [place(node, {2 * k, 2 * k + 1}, 2) for node in ("n1", "n2") for k in range(2)]
    assert describe(places) == "ranks: 4 on 2 nodes (2 each); threads per rank: 2; cores: 2"


def test_more_threads_than_cores_are_told() -> None:
    line = describe([place("n1", {0, 1}, 2), place("n1", {0, 1}, 2), place("n2", {0, 1}, 2)])
    assert line.endswith("; oversubscribed: n1 runs 4 threads on 2 cores")
    assert "(1 to 2 each)" in line


def test_nodes_of_a_batch_job(tmp_path):
    hosts = tmp_path / "nodes"
    hosts.write_text("n1\nn1\nn2\n")
    assert nodes_of_job({}) == 1
    assert nodes_of_job({"SLURM_JOB_NUM_NODES": "4"}) == 4
    assert nodes_of_job({"PBS_NODEFILE": str(hosts)}) == 2
    parts = {"SLURM_JOB_NUM_NODES_HET_GROUP_0": "1", "SLURM_JOB_NUM_NODES_HET_GROUP_1": "2"}
    assert nodes_of_job({"SLURM_JOB_NUM_NODES": "1"} | parts) == 3
