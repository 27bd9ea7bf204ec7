"""A scaling study as a job array."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ministream import jit
from tests.slurm.lab import Lab

PROJECT = Path(__file__).resolve().parents[2]
STUDY = "--modes strong --ranks 1 2 --threads 1 --n 32 --slices 4 --projections 8 --length 8 --step 4 --repetitions 1"


def test_the_tasks_of_an_array_share_a_study_and_resume_it(lab: Lab, tmp_path: Path) -> None:
    script = PROJECT / "slurm" / "scaling.sbatch"
    environment = {
        "NUMBA_CACHE_DIR": str(jit.cache_directory()),
        "MINISTREAM_SHARED_TMP": str(tmp_path),
        "SLURM_MPI_TYPE": "pmix",
    }
    words = (
        "sbatch",
        "--wait",
        "--array=0-1%1",
        "--exclusive=user",
        f"--chdir={PROJECT}",
        f"--output={tmp_path}/%a.log",
    )
    study = tmp_path / "study"
    ran = lab.run(*words, script, "--study", study, *STUDY.split(), timeout_s=200, **environment)
    log = "".join(file.read_text() for file in sorted(tmp_path.glob("*.log")))
    assert ran.returncode == 0, ran.stderr + log
    points = {json.loads(file.read_text())["ranks"]: file for file in study.glob("strong-*.json")}
    assert sorted(points) == [1, 2], log
    # What is there is not measured again: the rest is done in no time.
    written = {file: file.stat().st_mtime_ns for file in points.values()}
    command = [sys.executable, "-m", "benchmarks", "scaling", "--study", str(study), *STUDY.split()]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=60)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert len((study / "points.jsonl").read_text().splitlines()) == 2
    assert {figure.suffix for figure in study.glob("strong-scaling.*")} == {".png", ".pdf"}
