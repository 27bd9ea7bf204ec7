"""Conversion from slices innermost in memory to [slice, row, col] on disk, in blocks of bounded size.

A block is a band of image rows of all the slices of a slab. Every rank has the same n rows for any
number of slices, so all ranks make the same number of collective writes, and no write is empty.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ministream.model import Slab

SCRATCH_BYTES = 32 << 20
CHUNK_BYTES = 4 << 20
ITEM = 4  # float32
LINE = 16  # float32 values in a cache line


def rows_per_block(slices: int, n: int) -> int:
    """Image rows in one block of `slices` slices [n, n]: 32 MiB, or 1/32 of the slab where that is more."""
    budget = max(SCRATCH_BYTES, slices * n * n * ITEM // 32)
    return min(n, max(1, budget // (slices * n * ITEM)))


def scratch_bytes(slices: int, n: int) -> int:
    """Memory for writing on a rank, in addition to the image; `slices` is the largest slab's number of rows."""
    return slices * rows_per_block(slices, n) * n * ITEM


def blocks(slices: int, n: int) -> list[slice]:
    """The bands of image rows in which a volume is written, the same on every rank."""
    rows = rows_per_block(slices, n)
    return [slice(first, min(first + rows, n)) for first in range(0, n, rows)]


def band(scratch: NDArray[np.float32], slab: Slab, rows: slice, n: int) -> NDArray[np.float32]:
    """The start of the flat `scratch` as a block [slab.rows, rows, n]."""
    shape = (slab.rows, rows.stop - rows.start, n)
    return scratch[: math.prod(shape)].reshape(shape)


def chunk_shape(n: int) -> tuple[int, int, int]:
    """HDF5 chunk: one slice, or equal bands of its rows where a slice is larger than 4 MiB."""
    bands = -(-n * n * ITEM // CHUNK_BYTES)
    return 1, -(-n // bands), n


def slices_first(image: NDArray[np.float32], rows: slice, out: NDArray[np.float32], scale: float = 1.0) -> None:
    """Copy the band `rows` of `image` [n, n, slices padded], times `scale`, to `out` [slices, rows, n].

    One image row and one cache line of slices at a time: each line of `image` is read from memory once.
    """
    slices = out.shape[0]
    for row in range(rows.start, rows.stop):
        for first in range(0, slices, LINE):
            last = min(first + LINE, slices)
            np.multiply(image[row, :, first:last].T, np.float32(scale), out=out[first:last, row - rows.start, :])
