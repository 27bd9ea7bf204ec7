"""The memory that the reconstruction of one slab needs."""

from __future__ import annotations

from dataclasses import dataclass

from ministream.recon.backend import default
from ministream.recon.geometry import Geometry


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
    """Memory that a slab of `slices` slices with a window of `length` projections needs.

    `images` and `residuals` count the algorithm's arrays of those sizes; `per_pixel` are the bytes per pixel of one
    slice that the row and column weights take.
    """
    padded = padded_slices(slices)
    sinogram = length * geometry.cols * padded * 4
    image = geometry.n**2 * padded * 4
    weights = geometry.n**2 * per_pixel + length * geometry.cols * 8
    return Memory(images=images * image, window=sinogram, residuals=residuals * sinogram, weights=weights)


def padded_slices(slices: int) -> int:
    """The number of slices after padding by the backend."""
    return default().padded_slices(slices)
