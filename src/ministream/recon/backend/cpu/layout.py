"""Memory layout of arrays: aligned, slices padded to whole vectors, image rows in different cache sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend.cpu.blocking import PROCESSOR
from ministream.recon.geometry import Geometry

ALIGNMENT = 64
"""Bytes of a cache line and of the widest vector."""
PAGE = 4096
"""Distance in bytes of addresses that map to the same set of a first-level cache."""


def new_image(geometry: Geometry, slices: int) -> NDArray[np.float32]:
    """A zero image [n, n, padded slices]: a view of slightly longer rows, not contiguous."""
    n, padded = geometry.n, padded_slices(slices)
    pitch = _pitch(n, 4 * padded)
    rows = aligned_zeros((n * pitch // 4,))
    return np.lib.stride_tricks.as_strided(rows, (n, n, padded), (pitch, 4 * padded, 4))


def new_window(length: int, cols: int, slices: int) -> NDArray[np.float32]:
    """Zero projections [length, cols, padded slices]."""
    return aligned_zeros((length, cols, padded_slices(slices)))


def new_sinogram(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """A zero sinogram as large as a window's data."""
    return aligned_zeros(window.shape)


def new_dual(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A zero vector per pixel, [2, n, n, padded slices]."""
    return aligned_zeros((2, *image.shape))


def padded_slices(slices: int) -> int:
    """The number of slices after padding: 1, 2, 4, 8 or a multiple of 16."""
    if slices <= 8:
        return 1 << (slices - 1).bit_length()
    return -(-slices // 16) * 16


def rows_collide(row_bytes: int, pixel_bytes: int) -> bool:
    """Whether the same pixels of neighbouring rows, or of a diagonal, compete for the same cache sets.

    If a pixel is larger than the slices that kernels process together, a block occupies only part of the sets: the
    neighbouring rows must use the other sets.
    """
    distance, block_bytes = row_bytes % PAGE, 4 * PROCESSOR.widest
    room = max(3 * min(pixel_bytes, 256), 3 * ALIGNMENT)
    shared = pixel_bytes > block_bytes and distance % (2 * block_bytes) != block_bytes
    return not room <= distance <= PAGE - room or shared


def _pitch(n: int, pixel_bytes: int) -> int:
    """Bytes from one row to the next: a multiple of the cache line, chosen so that rows do not collide."""
    shortest = -(-n * pixel_bytes // ALIGNMENT) * ALIGNMENT
    longer = range(shortest, shortest + PAGE, ALIGNMENT)
    return next((row for row in longer if not rows_collide(row, pixel_bytes)), shortest)


def aligned_zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A zero float32 array whose first element starts a cache line, so that no vector load straddles two."""
    count = int(np.prod(shape))
    raw = np.zeros(count * 4 + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * 4].view(np.float32).reshape(shape)
