"""The scripts for PBS and LSF, without these: the test sets what they set on a node, and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.jobs import MINISTREAM, Lab, lab

ROOT = Path(__file__).parents[2]
RUN = """
[source]
kind = "phantom"
rows = 4
cols = 32
projections = 30
[output]
pictures = false
[window]
length = 20
step = 10
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as running:
        yield running


@pytest.mark.parametrize("scheduler", ["pbs", "lsf"])
def test_the_two_jobs_of_a_pair(jobs: Lab, scheduler: str) -> None:
    run, hosts = jobs.folder / "run.toml", jobs.folder / "hosts"
    run.write_text(RUN)
    hosts.write_text("localhost\nlocalhost\n")
    node = {
        "pbs": {"PBS_O_WORKDIR": str(jobs.folder), "PBS_NODEFILE": str(hosts), "OMP_NUM_THREADS": "1"},
        "lsf": {"LSB_DJOB_HOSTFILE": str(hosts), "THREADS": "1"},
    }[scheduler]
    asked = {"RUN": str(run), "RENDEZVOUS": str(jobs.folder / "pair"), "OUT": str(jobs.out)}
    path = f"{Path(MINISTREAM[0]).parent}:/usr/local/bin:/usr/bin:/bin"
    words = ["env", f"PATH={path}", *(f"{name}={value}" for name, value in (node | asked).items()), "bash"]
    recon, producer = (
        jobs.start(side, [*words, str(ROOT / scheduler / f"{side}.{scheduler}")]) for side in ("recon", "producer")
    )
    assert recon.wait() == 0, recon.text + producer.text
    assert producer.wait() == 0, producer.text
    summary = json.loads((jobs.out / "summary.json").read_text())
    assert summary["complete"]
    assert summary["ranks"] == 2


@pytest.mark.parametrize("script", sorted([*ROOT.glob("pbs/*"), *ROOT.glob("lsf/*")]), ids=lambda path: path.name)
def test_what_is_missing_is_named(script: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["bash", script], env={"PBS_O_WORKDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert "name the run file: " in ran.stderr
