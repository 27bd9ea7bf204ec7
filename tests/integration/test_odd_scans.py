"""Odd scans through both jobs: what is noticed reaches log, summary, volume and exit code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.jobs import MINISTREAM, Job, Lab, lab
from tests.odd_scans import OddScan, good


@pytest.fixture
def jobs(tmp_path: Path):
    with lab(tmp_path) as jobs:
        yield jobs


def write(path: Path, odd: OddScan) -> None:
    """A DXchange file of this scan."""
    with h5py.File(path, "w") as file:
        file["/exchange/data"], file["/exchange/theta"] = odd.data, odd.degrees
        file["/exchange/data_white"], file["/exchange/data_dark"] = odd.flats, odd.darks


def launch(jobs: Lab, odd: OddScan, *options: str) -> Job:
    """The pair of jobs on a DXchange file of this scan."""
    write(jobs.folder / "scan.h5", odd)
    source = ["--set", "source.kind=dxchange", "--set", f"source.file={jobs.folder / 'scan.h5'}"]
    quick = ["--set", "output.pictures=false", "--ranks", "2", "--out", str(jobs.out)]
    return jobs.start("launch", [*MINISTREAM, "launch", *source, *quick, *options])


def test_projections_that_were_never_written_make_the_run_incomplete(jobs: Lab) -> None:
    data = good().data.copy()
    data[[20, 41, 70]] = 0
    job = launch(jobs, good(data=data))
    assert job.wait() == 3, job.text
    summary = jobs.summary()
    (warning,) = summary["warnings"]
    assert (warning["code"], warning["frames"]) == ("projections-unwritten", [20, 41, 70])
    assert warning["numbers"] == {"frames": 3}
    assert summary["projections"]["used"] == 87
    assert not summary["complete"]
    assert sum(" W " in line and "projections-unwritten: " in line for line in job.text.splitlines()) == 1, (
        "logged once"
    )


def test_equal_angles_are_refused_and_no_volume_is_written(jobs: Lab) -> None:
    job = launch(jobs, good(degrees=np.zeros(90)))
    assert job.wait() == 2, job.text
    assert "all 90 angles are the same" in job.text
    assert not (jobs.out / "recon.h5").exists()


def test_what_is_noticed_stands_in_the_output_and_can_be_accepted(jobs: Lab) -> None:
    options = ("--set", "recon.axis=35.5", "--strict", "--accept", "axis-off")
    job = launch(jobs, good(), *options)
    assert job.wait() == 0, job.text
    summary = jobs.summary()
    assert [warning["code"] for warning in summary["warnings"]] == summary["accepted"] == ["axis-off"]
    with h5py.File(jobs.out / "recon.h5") as file:
        (warning,) = json.loads(file.attrs["warnings"])
        assert warning["numbers"]["fitted_col"] == pytest.approx(31.5, abs=0.2)
        assert json.loads(file.attrs["warnings_accepted"]) == ["axis-off"]


def test_a_strict_run_ends_without_a_volume(jobs: Lab) -> None:
    job = launch(jobs, good(), "--set", "recon.axis=35.5", "--strict")
    assert job.wait() == 2, job.text
    assert "--accept axis-off" in job.text
    assert not (jobs.out / "recon.h5").exists()


@pytest.mark.parametrize(
    ("odd", "options", "code", "words"),
    [
        (good(), (), 0, "plausible"),
        (good(), ("--set", "recon.axis=35.5"), 3, "axis-off"),
        (good(), ("--set", "recon.axis=35.5", "--accept", "axis-off"), 0, "(accepted)"),
        (good(degrees=np.zeros(90)), (), 2, "all 90 angles are the same"),
    ],
    ids=["good", "odd", "accepted", "not usable"],
)
def test_check_judges_a_scan_without_reconstructing_it(
    tmp_path: Path, odd: OddScan, options: tuple[str, ...], code: int, words: str
) -> None:
    write(tmp_path / "scan.h5", odd)
    command = [*MINISTREAM, "check", str(tmp_path / "scan.h5"), *options]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert checked.returncode == code, checked.stdout + checked.stderr
    assert words in checked.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]
