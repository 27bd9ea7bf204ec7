"""More ranks than cores: the volume must not depend on how many there are. No time measured here means anything."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest

from tests.integration.jobs import Lab, lab

pytestmark = [pytest.mark.slow, pytest.mark.oversubscribed]

ROWS = 70  # slabs of 1 to 9 rows, and never all alike
SCAN = [f"source.rows={ROWS}", "source.cols=24", "source.projections=24", "source.seed=5"]
WINDOW = ["--window-length", "12", "--window-step", "8", "--window-iter", "2", "--write-freq", "2", "--threads", "1"]
MANY = "MINISTREAM_MANY_RANKS"
by_hand = pytest.mark.skipif(MANY not in os.environ, reason=f"takes minutes: set {MANY}=1")


def volume(jobs: Lab, ranks: int, ingress: int) -> np.ndarray:
    """What so many ranks reconstruct."""
    producer = jobs.produce(*(part for setting in SCAN for part in ("--set", setting)))
    address = jobs.announced("producer", producer)["data"]
    options = ["--ingress", str(ingress), *WINDOW]
    reconstruction = jobs.recon(ranks, "--connect", address, *options)
    assert (reconstruction.wait(), producer.wait()) == (0, 0), reconstruction.text
    summary = jobs.summary()
    assert summary["complete"]
    assert summary["ranks"] == len(summary["peak_memory_mib"]) == ranks
    assert summary["projections"]["used"] == 24
    assert ranks == 1 or "oversubscribed" in reconstruction.text
    with h5py.File(jobs.out / "recon.h5") as file:
        data: np.ndarray = file["data"][:]
    return data


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The volume of one rank."""
    with lab(tmp_path_factory.mktemp("alone")) as jobs:
        return volume(jobs, 1, 1)


@pytest.mark.parametrize(
    ("ranks", "ingress"),
    [(8, 1), (16, 3), pytest.param(32, 1, marks=by_hand), pytest.param(64, 5, marks=by_hand)],
)
def test_many_ranks_make_the_volume_of_one(tmp_path, alone: np.ndarray, ranks: int, ingress: int) -> None:
    with lab(tmp_path) as jobs:
        many = volume(jobs, ranks, ingress)
    assert np.linalg.norm(many - alone) <= 1e-5 * np.linalg.norm(alone)
