"""Comparing with the truth or a reference on several ranks: what goes wrong goes wrong on all, and costs no volume."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ministream import config, partition
from ministream.app.judge import Judge
from ministream.app.settle import Assignment
from ministream.errors import ConfigError, InputError
from ministream.model import Scan
from ministream.parallel.mpi import Comm

pytestmark = pytest.mark.mpi

ROWS, N = 5, 16


def assignment(comm: Comm, reference: Path | None, truth: str | None = None) -> Assignment:
    given = {"output": {"reference": reference}} if reference else {}
    scan = Scan(scan_id="s", rows=ROWS, cols=N, projections=4, flats=1, darks=1, dtype="<u2", truth=truth)
    slabs = partition.slabs(ROWS, comm.size)
    settled = config.load(None, given)
    return Assignment(
        rank=comm.rank, config=settled, scan=scan, slabs=slabs, group=range(comm.size), axis_col=7.5, threads=1
    )


def slab_image(volume: np.ndarray, my: Assignment) -> np.ndarray:
    return np.ascontiguousarray(volume[my.slab.slice].transpose(1, 2, 0))


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
    my = assignment(comm, reference)
    judge = Judge(comm, my)
    assert judge.known
    assert judge.live
    assert judge.sums(slab_image(volume, my)).mean()["ssim"] == pytest.approx(1.0)
    assert judge.sums(slab_image(volume[::-1], my)).mean()["ssim"] < 0.5


def test_a_reference_that_goes_away_is_told_and_left_alone(comm, reference, volume, caplog):
    my = assignment(comm, reference)
    judge = Judge(comm, my)
    comm.barrier()
    if comm.rank == 0:
        reference.unlink()
    comm.barrier()
    assert judge.sums(slab_image(volume, my)) is None
    assert (judge.known, judge.live) == (False, False)
    told = [record.getMessage() for record in caplog.records if "quality is not measured" in record.getMessage()]
    assert len(told) == (comm.rank == 0)


def test_a_reference_of_another_shape_is_refused_at_the_start(comm, shared_tmp):
    path = shared_tmp / "other.h5"
    if comm.rank == 0:
        with h5py.File(path, "w", driver="sec2") as file:
            file["data"] = np.zeros((ROWS, N, N + 1), np.float32)
    comm.barrier()
    with pytest.raises(InputError, match="reference is"):
        Judge(comm, assignment(comm, path))


def test_without_the_package_only_who_asked_is_refused(comm, reference, monkeypatch):
    # on one rank only: its node may lack what the others have
    if comm.rank == comm.size - 1:
        monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"ministream\[quality\]"):
        Judge(comm, assignment(comm, reference))
    assert not Judge(comm, assignment(comm, None, truth="{}")).known
