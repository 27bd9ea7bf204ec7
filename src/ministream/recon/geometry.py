"""The parallel-beam geometry of one slab, and the memory it needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes of a cache line and of the widest vector."""
PAGE = 4096
"""Bytes after which addresses meet in the same set of a first-level cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Slices of n × n pixels seen by `cols` detector columns, pixels and columns of the same size.

    x = column - (n - 1) / 2, y = (n - 1) / 2 - row, and u = x cos(theta) + y sin(theta) + axis_col.
    """

    n: int
    cols: int
    axis_col: float

    def circle(self) -> NDArray[np.bool_]:
        """The pixels [n, n] that every projection sees: the largest circle that fits the slice and the detector."""
        radius = min(self.n / 2, self.axis_col + 0.5, self.cols - 0.5 - self.axis_col)
        axis = np.arange(self.n) - (self.n - 1) / 2
        inside: NDArray[np.bool_] = axis[:, None] ** 2 + axis**2 <= radius**2
        return inside

    def new_image(self, slices: int) -> NDArray[np.float32]:
        """A zero image [n, n, padded slices] for the kernels: a view of slightly longer rows, not contiguous."""
        padded = padded_slices(slices)
        pitch = _pitch(self.n, 4 * padded)
        rows = aligned_zeros((self.n * pitch // 4,))
        return np.lib.stride_tricks.as_strided(rows, (self.n, self.n, padded), (pitch, 4 * padded, 4))


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that the reconstruction of one slab holds at its peak."""

    images: int
    window: int
    residuals: int
    weights: int

    @property
    def total(self) -> int:
        return self.images + self.window + self.residuals + self.weights


def memory_bytes(
    geometry: Geometry, slices: int, length: int, *, images: int = 1, residuals: int = 1, per_pixel: int = 20
) -> Memory:
    """What a slab of `slices` slices with a window of `length` projections needs.

    `images` and `residuals` count the algorithm's arrays of those sizes; `per_pixel` are the bytes per pixel of one
    slice that the row and column weights take.
    """
    padded = padded_slices(slices)
    sinogram = length * geometry.cols * padded * 4
    image = geometry.n**2 * padded * 4
    weights = geometry.n**2 * per_pixel + length * geometry.cols * 8
    return Memory(images=images * image, window=sinogram, residuals=residuals * sinogram, weights=weights)


def padded_slices(slices: int) -> int:
    """Slices as the kernels keep them: 1, 2, 4, 8 or a multiple of 16."""
    if slices <= 8:
        return 1 << (slices - 1).bit_length()
    return -(-slices // 16) * 16


def rows_collide(row_bytes: int, pixel_bytes: int) -> bool:
    """Rows so long that the same pixels of neighbouring rows, or of a diagonal, compete for the same cache sets.

    Of pixels that are larger than the 128 slices that kernels take at once, every other row must lie in the sets that
    the rows beside it leave free.
    """
    distance = row_bytes % PAGE
    room = max(3 * min(pixel_bytes, 256), 3 * ALIGNMENT)
    return not room <= distance <= PAGE - room or (pixel_bytes > 512 and distance % 1024 != 512)


def _pitch(n: int, pixel_bytes: int) -> int:
    """Bytes from one row to the next: whole cache lines, and so many that rows do not collide."""
    shortest = -(-n * pixel_bytes // ALIGNMENT) * ALIGNMENT
    longer = range(shortest, shortest + PAGE, ALIGNMENT)
    return next((row for row in longer if not rows_collide(row, pixel_bytes)), shortest)


def aligned_zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A zero float32 array whose first element starts a cache line, so that no vector load straddles two."""
    count = int(np.prod(shape))
    raw = np.zeros(count * 4 + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * 4].view(np.float32).reshape(shape)
