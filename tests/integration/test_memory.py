"""Predicted memory against the peaks that real ranks report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.jobs import MINISTREAM, lab

# Large enough for image, window and snapshot copy to outweigh what an idle rank holds.
ROWS, COLS, PROJECTIONS = 128, 512, 64
WINDOW = {"window.length": 64, "window.step": 16, "output.pictures": "false", "recon.threads": 1}
# a short run ends before its first checkpoint is due
NO_CHECKPOINTS, CHECKPOINTS = {"checkpoint.every_s": 0}, {"checkpoint.every_updates": 1}
IMAGE_MIB = ROWS * COLS * COLS * 4 / 2**20


def words(settings: dict[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> dict[str, object]:
    """A recorded scan: the quality of an image without ground truth is not computed, which would take memory too."""
    path, random = tmp_path_factory.mktemp("scan") / "scan.h5", np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for name, count, level in (("data", PROJECTIONS, 9000), ("data_white", 2, 20000), ("data_dark", 2, 50)):
            file[f"exchange/{name}"] = random.integers(level, 1.1 * level, (count, ROWS, COLS), np.uint16)
        file["exchange/theta"] = np.linspace(0, 180, PROJECTIONS, endpoint=False)
    found = {"source.kind": "dxchange", "source.file": path}
    measured_mib(path.with_name("compiled"), found, 1, 1)  # compiling takes memory too, once on a machine
    return found


def predicted_mib(
    scan: dict[str, object], ranks: int, write_freq: int, saved: dict[str, int] = NO_CHECKPOINTS
) -> list[float]:
    """Peaks of the ranks as `ministream check` predicts them."""
    settings = scan | WINDOW | saved | {"window.write_freq": write_freq}
    command = [*MINISTREAM, "check", "--json", "--ranks", str(ranks), *words(settings)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    peaks = json.loads(told.stdout)["peak_mib"]
    return [peaks["rank 0"]] + [peaks["other ranks"]] * (ranks - 1)


def measured_mib(
    folder: Path, scan: dict[str, object], ranks: int, write_freq: int, saved: dict[str, int] = NO_CHECKPOINTS
) -> list[float]:
    folder.mkdir()
    with lab(folder) as jobs:
        producer = jobs.produce(*words(scan))
        address = jobs.announced("producer", producer)["data"]
        settings = words(WINDOW | saved | {"window.write_freq": write_freq})
        reconstruction = jobs.recon(ranks, "--connect", address, *settings)
        assert reconstruction.wait() in {0, 3}, reconstruction.text  # noise is no plausible scan
        return jobs.summary()["peak_memory_mib"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_peaks_where_it_was_predicted(tmp_path, scan, ranks):
    """Also the step from a run without snapshots to one with them, which no error of the base can hide."""
    plain, snapshots = (predicted_mib(scan, ranks, freq) for freq in (0, 1))
    measured_plain, measured_snapshots = (measured_mib(tmp_path / str(freq), scan, ranks, freq) for freq in (0, 1))
    assert measured_plain == pytest.approx(plain, rel=0.1)
    assert measured_snapshots == pytest.approx(snapshots, rel=0.1)
    taken = [after - before for before, after in zip(measured_plain, measured_snapshots, strict=True)]
    assert taken == pytest.approx(np.subtract(snapshots, plain).tolist(), abs=16)
    assert min(taken) > 0.9 * IMAGE_MIB / ranks


@pytest.mark.slow
def test_checkpoints_take_the_memory_that_check_states(tmp_path, scan):
    predicted = predicted_mib(scan, 2, 0, CHECKPOINTS)
    assert measured_mib(tmp_path / "saved", scan, 2, 0, CHECKPOINTS) == pytest.approx(predicted, rel=0.1)
    assert min(np.subtract(predicted, predicted_mib(scan, 2, 0))) > IMAGE_MIB / 2
