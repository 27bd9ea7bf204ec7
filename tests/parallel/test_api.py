"""The Python interface on several ranks gives what it gives on one."""

from __future__ import annotations

import numpy as np
import pytest

from ministream import reconstruct, stream
from ministream.app import api
from tests.parallel.scans import ROWS, N, producing, scan

pytestmark = pytest.mark.mpi


def test_the_slices_are_divided_among_the_ranks(comm, monkeypatch):
    lines, angles = np.random.default_rng(1).random((9, ROWS, N)), np.arange(9) * 20
    volume = reconstruct(lines, angles, iterations=3, threads=1)
    monkeypatch.setattr(api, "_LAUNCHED", ())
    np.testing.assert_allclose(volume, reconstruct(lines, angles, iterations=3, threads=1), atol=1e-6)


def test_every_rank_receives_rows_of_its_own(comm):
    with producing(comm, scan()) as address:
        *_, update = stream(address, threads=1)
    parts = comm.allgather((update.first_row, update.volume.shape, update.projections))
    assert [first for first, _, _ in parts] == sorted({first for first, _, _ in parts})
    assert sum(shape[0] for _, shape, _ in parts) == ROWS
    assert {projections for _, _, projections in parts} == {8}
