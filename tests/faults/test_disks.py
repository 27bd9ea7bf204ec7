"""Disks that are full: a small file system that the test mounts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.faults.scans import Pair, volume
from tests.integration.jobs import Lab


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a disk with room for so many bytes."""
    folder = tmp_path / "small"

    def make(size: int) -> Path:
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ministream-test", str(folder)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount a tmpfs here")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_a_checkpoint_that_does_not_fit_is_a_warning(
    jobs: Lab, small_disk: Callable[[int], Path], undisturbed: NDArray[np.float32]
) -> None:
    disk = small_disk(40_000)
    options = ("--set", "checkpoint.every_updates=1", "--set", f"checkpoint.directory={disk / 'saved'}")
    pair = Pair(jobs).directly(recon=options)
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)
    assert "No space left on device" in pair.recon.text
    assert "No space left" in jobs.summary()["failures"]["checkpoints"]
    assert not list(disk.rglob("*.bin")), "what was written before the disk was full"


def test_a_scan_whose_archive_does_not_fit_on_the_disk_is_not_begun(
    jobs: Lab, small_disk: Callable[[int], Path]
) -> None:
    archive = small_disk(50_000) / "raw.h5"
    pair = Pair(jobs)
    pair.produce("--archive", str(archive))
    assert pair.producer.wait() == 5
    (line,) = [line for line in pair.producer.text.splitlines() if line.startswith("ministream: ")]
    assert f"{archive}: cannot be written: No space left on device; free space there" in line
    assert not archive.exists()
