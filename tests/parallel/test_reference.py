"""Comparing with the truth or a reference on several ranks: what goes wrong goes wrong on all, and costs no volume."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ministream import config, partition
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.reference import ReferenceComparison
from ministream.errors import ConfigError, InputError
from ministream.model import Scan
from ministream.parallel.mpi import Comm

pytestmark = pytest.mark.mpi

ROWS, N = 5, 16


def assignment_of(comm: Comm, reference: Path | None, truth: str | None = None) -> Assignment:
    given = {"output": {"reference": reference}} if reference else {}
    scan = Scan(scan_id="s", rows=ROWS, cols=N, projections=4, flats=1, darks=1, dtype="<u2", truth=truth)
    slabs = partition.slabs(ROWS, comm.size)
    resolved = config.load(None, given)
    return Assignment(
        rank=comm.rank, config=resolved, scan=scan, slabs=slabs, group=range(comm.size), axis_col=7.5, n=N, threads=1
    )


def slab_image(volume: np.ndarray, assignment: Assignment) -> np.ndarray:
    return np.ascontiguousarray(volume[assignment.slab.slice].transpose(1, 2, 0))


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(5).random((ROWS, N, N), np.float32)


@pytest.fixture
def reference(comm, shared_tmp, volume) -> Path:
    path = shared_tmp / "reference.h5"
    if comm.rank == 0:
        with h5py.File(path, "w", driver="sec2") as file:
            file["data"] = volume
    comm.barrier()
    return path


def test_a_reference_is_compared_with_by_all_ranks(comm, reference, volume):
    assignment = assignment_of(comm, reference)
    comparison = ReferenceComparison(comm, assignment)
    assert comparison.known
    assert comparison.live
    assert comparison.sums(slab_image(volume, assignment), 1.0).mean()["ssim"] == pytest.approx(1.0)
    assert comparison.sums(slab_image(volume[::-1], assignment), 1.0).mean()["ssim"] < 0.5


def test_a_reference_that_goes_away_is_told_and_left_alone(comm, reference, volume, caplog):
    assignment = assignment_of(comm, reference)
    comparison = ReferenceComparison(comm, assignment)
    comm.barrier()
    if comm.rank == 0:
        reference.unlink()
    comm.barrier()
    assert comparison.sums(slab_image(volume, assignment), 1.0) is None
    assert (comparison.known, comparison.live) == (False, False)
    told = [record.getMessage() for record in caplog.records if "quality is not measured" in record.getMessage()]
    assert len(told) == (comm.rank == 0)


def test_a_reference_of_another_shape_is_refused_at_the_start(comm, shared_tmp):
    path = shared_tmp / "other.h5"
    if comm.rank == 0:
        with h5py.File(path, "w", driver="sec2") as file:
            file["data"] = np.zeros((ROWS, N, N + 1), np.float32)
    comm.barrier()
    with pytest.raises(InputError, match="reference is"):
        ReferenceComparison(comm, assignment_of(comm, path))


def test_without_the_package_only_who_asked_is_refused(comm, reference, monkeypatch):
    # on one rank only: its node may lack what the others have
    if comm.rank == comm.size - 1:
        monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"ministream\[quality\]"):
        ReferenceComparison(comm, assignment_of(comm, reference))
    assert not ReferenceComparison(comm, assignment_of(comm, None, truth="{}")).known
