"""Snapshots written while a job computes, from the outside: a full disk, a slow disk, an early end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.waiting import eventually

SCAN = ["source.rows=6", "source.cols=64", "source.projections=60"]
WINDOW = ["--window-length", "20", "--window-step", "5", "--write-freq", "1"]
VOLUME = 6 * 64 * 64 * 4

# A disk on which a rank's part of a volume takes a second: `os.fsync` of a file in a process that imports this.
SLOW = """
import os, time
_sync = os.fsync
def slowly(descriptor):
    if ".part" in os.readlink(f"/proc/self/fd/{descriptor}"):
        time.sleep(1)
    _sync(descriptor)
os.fsync = slowly
"""


@pytest.fixture
def small_disk(jobs):
    """Where results go: room for two volumes and a half, and for what else a job leaves."""
    jobs.out.mkdir()
    size = 2 * (VOLUME + 200_000) + VOLUME // 2
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ministream-test", str(jobs.out)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield jobs.out
    subprocess.run(["umount", str(jobs.out)], check=True)


@pytest.fixture
def slow_disk(tmp_path, monkeypatch):
    """Ranks whose disk is slow."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def started(jobs, *recon: str, rate: float = 0.0):
    words = [word for setting in SCAN for word in ("--set", setting)]
    producer = jobs.produce(*words, *(("--rate", str(rate)) if rate else ()))
    address = jobs.announced("producer", producer)["data"]
    return producer, jobs.recon(2, "--connect", address, *WINDOW, *recon)


def assert_whole(paths: list[Path]) -> None:
    for path in paths:
        with h5py.File(path) as file:
            assert np.isfinite(file["data"][:]).all()


@pytest.mark.parametrize("writer", ["direct", "hdf5"])
def test_on_a_full_disk_snapshots_are_left_out_and_the_volume_goes_elsewhere(jobs, small_disk, tmp_path, writer):
    elsewhere = tmp_path / "elsewhere"
    options = ["--set", f"output.writer={writer}", "--set", f"output.fallback={elsewhere}"]
    producer, reconstruction = started(jobs, *options)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    assert re.search(r"W .*snapshots failed, .*00000\d-recon\.h5: cannot be written: No space", reconstruction.text)
    assert f"writing the volume to the fallback folder {elsewhere}" in reconstruction.text
    whole = sorted(small_disk.glob("0*-recon.h5"))
    assert whole
    assert not list(small_disk.glob(".*.part"))
    assert_whole([*whole, elsewhere / "recon.h5"])
    summary = json.loads(
        next(d for d in (small_disk, elsewhere) if (d / "summary.json").exists()).joinpath("summary.json").read_text()
    )
    assert str(elsewhere / "recon.h5") in summary["files"]
    assert all(Path(file).exists() for file in summary["files"])
    assert "No space left" in summary["failures"]["snapshots"]


def test_a_full_disk_without_another_place_ends_the_job_and_names_both(jobs, small_disk):
    _, reconstruction = started(jobs)
    assert reconstruction.wait() == 5, reconstruction.text
    assert re.search(
        r"the volume is lost: .*recon\.h5: cannot be written: No space left.*output\.fallback", reconstruction.text
    )
    assert_whole(sorted(small_disk.glob("0*-recon.h5")))
    assert "Traceback" not in reconstruction.text


def test_a_disk_that_becomes_read_only_costs_no_volume(jobs, small_disk, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    producer, reconstruction = started(jobs, "--set", f"output.fallback={elsewhere}", rate=20.0)
    reconstruction.until(lambda: list(small_disk.glob("000001-recon.h5")))
    read_only = ["mount", "-o", "remount,ro", str(small_disk)]
    eventually(lambda: subprocess.run(read_only, check=False).returncode == 0)  # busy while a snapshot is written
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    assert_whole([elsewhere / "recon.h5"])
    assert "Traceback" not in reconstruction.text


def test_a_slow_disk_holds_nobody_up(jobs, slow_disk):
    """Twelve updates in five seconds of beam; every third is written, which takes a second."""
    producer, reconstruction = started(jobs, "--write-freq", "3", rate=12.0)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    summary = jobs.summary()
    assert len(summary["files"]) == 5
    # on a busy machine the updates follow each other faster than the disk writes, and more is waited for
    assert summary["write_hidden_s"] > 0.5
    assert "s hidden" in reconstruction.text


def test_an_early_end_waits_for_what_is_being_written(jobs, slow_disk):
    _, reconstruction = started(jobs, rate=5.0)
    parts: list[Path] = []
    reconstruction.until(lambda: parts.extend(jobs.out.glob(".0*.part")) or parts)
    reconstruction.signal(signal.SIGUSR1)
    assert reconstruction.wait() == 3, reconstruction.text
    written = Path(parts[0].name.removeprefix(".").removesuffix(".part"))
    assert str(jobs.out / written) in jobs.summary()["files"]
    assert all(Path(file).exists() for file in jobs.summary()["files"])
    assert not list(jobs.out.glob(".*.part"))
