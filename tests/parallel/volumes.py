"""Volumes as several ranks write them."""

from __future__ import annotations

import numpy as np

from ministream import partition, storage
from ministream.ledger import Ledger
from ministream.model import Scan


def state():
    return storage.VolumeState(ledger=Ledger(received=4, used=4), updates=1, elapsed_s=0.5)


def whole(rows, n):
    """The volume [slice, row, col]; every value differs."""
    return np.random.default_rng(11).permutation(rows * n * n).astype(np.float32).reshape(rows, n, n)


def writer_and_image(comm, directory, rows, n, how="auto"):
    slab = partition.slabs(rows, comm.size)[comm.rank]
    image = np.zeros((n, n, -(-slab.rows // 16) * 16), np.float32)
    image[:, :, : slab.rows] = whole(rows, n)[slab.slice].transpose(1, 2, 0)
    scan = Scan(scan_id="p", rows=rows, cols=n, projections=4, flats=1, darks=1, dtype="<u2")
    writer = storage.VolumeWriter(comm, directory, scan=scan, n=n, slab=slab, axis_col=(n - 1) / 2, config={}, how=how)
    return writer, image
