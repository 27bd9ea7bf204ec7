"""Arithmetic on whole images and sinograms, [rows, columns, padded slices], on all threads.

Sums are kept per slice, so that a slice's result does not depend on the slab it is in.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ministream.recon.kernels import elementwise
from ministream.recon.kernels.threads import run

Array = NDArray[np.float32]
PerSlice = NDArray[np.float64]

_LOOP = 64


class ImageRows(NamedTuple):
    """An array's memory in one piece, and the distance of its rows in it."""

    data: Array
    pitch: int

    @classmethod
    def of(cls, array: Array) -> Self:
        """Raises ValueError for an array whose rows are not contiguous."""
        width = array.shape[1] * array.shape[2]
        if array.strides[1:] != (4 * array.shape[2], 4):
            raise ValueError("the pixels of a row must be contiguous: make images with Geometry.new_image")
        pitch = array.strides[0] // 4
        return cls(np.lib.stride_tricks.as_strided(array, ((array.shape[0] - 1) * pitch + width,), (4,)), pitch)


def combine(y: Array, x: Array, *, alpha: PerSlice | float = 1.0, beta: PerSlice | float = 1.0) -> None:
    """y = alpha x + beta y, with a factor each or one per slice."""
    slices = y.shape[2]
    # a few slices are repeated, so that the inner loop is a long one
    factors = (np.tile(np.broadcast_to(f, slices).astype(np.float32), -(-_LOOP // slices)) for f in (alpha, beta))
    _run(elementwise.combine, y.shape[0], *ImageRows.of(y), *ImageRows.of(x), y.shape[1] * slices, *factors)


def dot(y: Array, x: Array) -> PerSlice:
    """Σ x y of each slice, [padded slices]."""
    sums = np.zeros((y.shape[0], y.shape[2]))
    _run(elementwise.dot, y.shape[0], *ImageRows.of(y), *ImageRows.of(x), y.shape[1] * y.shape[2], sums)
    total: PerSlice = sums.sum(axis=0)
    return total


def denoise(noisy: Array, image: Array, dual: Array, *, threshold: float, passes: int) -> None:
    """image = the minimiser of |image - noisy|² / 2 + threshold TV(image), slice by slice; `dual` is kept in between.

    Projected gradient on the dual, A. Chambolle, J. Math. Imaging Vision 20 (2004) 89; `dual` is [2, n, n, slices].
    """
    n = image.shape[0]
    for _ in range(passes):
        _run(elementwise.tv_primal, n, *ImageRows.of(noisy), *ImageRows.of(image), dual, np.float32(threshold))
        _run(elementwise.tv_dual, n, *ImageRows.of(image), dual, np.float32(1 / (8 * threshold)))
    _run(elementwise.tv_primal, n, *ImageRows.of(noisy), *ImageRows.of(image), dual, np.float32(threshold))


def warm_up() -> None:
    """Compile or load the kernels of this module."""
    image = np.zeros((1, 1, 1), np.float32)
    combine(image, image, beta=dot(image, image))
    denoise(image, image, np.zeros((2, 1, 1, 1), np.float32), threshold=1.0, passes=1)


def _run(kernel: Any, tasks: int, *arguments: Any) -> None:
    run(lambda: lambda counter, quota: int(kernel(counter, quota, tasks, *arguments)), tasks)
