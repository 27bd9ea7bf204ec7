"""Arithmetic on whole images and sinograms, [rows, columns, padded slices], on all threads.

Sums are kept per slice, so that the result of a slice does not depend on its slab.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import PerSlice, Progress, idle
from ministream.recon.backend.cpu import elementwise
from ministream.recon.backend.cpu.threads import each, run
from ministream.recon.geometry import Beams

Array = NDArray[np.float32]

_LOOP = 64


class ImageRows(NamedTuple):
    """The contiguous memory of an array, and its row pitch."""

    data: Array
    pitch: int

    @classmethod
    def of(cls, array: Array) -> Self:
        """Raises ValueError for an array whose rows are not contiguous."""
        width = array.shape[1] * array.shape[2]
        if array.strides[1:] != (4 * array.shape[2], 4):
            raise ValueError("the pixels of a row must be contiguous: make images with new_image")
        pitch = array.strides[0] // 4
        return cls(np.lib.stride_tricks.as_strided(array, ((array.shape[0] - 1) * pitch + width,), (4,)), pitch)


def host(image: Array) -> Array:
    """The image itself."""
    return image


def clear(array: Array, slots: NDArray[np.int64] | None = None) -> None:
    """array = 0, or array[slots] = 0."""
    array[... if slots is None else slots] = 0


def copy(to: Array, of: Array, slots: NDArray[np.int64] | None = None) -> None:
    """to = of, or to[slots] = of[slots]."""
    if slots is None:
        np.copyto(to, of)
        return
    # one by one: an index array would create a temporary copy
    for slot in slots:
        to[slot] = of[slot]


def scale(array: Array, factor: float) -> None:
    """array = factor · array."""
    array *= np.float32(factor)


def limit(image: Array, lower: float | PerSlice, upper: float = np.inf) -> None:
    """Clip to `lower`, one or one per slice, and `upper`."""
    np.clip(image, np.float32(lower), np.float32(upper), out=image)


def mask(image: Array, support: NDArray[np.bool_]) -> None:
    """image = 0 outside the `support` [n, n]."""
    image[~support] = 0


def occupied(image: Array) -> NDArray[np.bool_]:
    """Which slices have a pixel that is not 0, [padded slices]."""
    found: NDArray[np.bool_] = np.asarray(image.any(axis=(0, 1)))
    return found


def positive_sums(sinogram: Array, held: int) -> PerSlice:
    """Σ max(y, 0) over the first `held` projections, [padded slices]."""
    total: PerSlice = np.maximum(sinogram[:held], 0).sum(axis=(0, 1), dtype=np.float64)
    return total


def combine(
    y: Array, x: Array, *, alpha: PerSlice | float = 1.0, beta: PerSlice | float = 1.0, held: int | None = None
) -> None:
    """y = alpha x + beta y, with a factor each or one per slice; all, or the first `held` projections."""
    y, x = y[:held], x[:held]
    slices = y.shape[2]
    # the factors of few slices are repeated, so that the inner loop is long
    factors = (np.tile(np.broadcast_to(f, slices).astype(np.float32), -(-_LOOP // slices)) for f in (alpha, beta))
    _run(elementwise.combine, y.shape[0], *ImageRows.of(y), *ImageRows.of(x), y.shape[1] * slices, *factors)


def dot(y: Array, x: Array, held: int | None = None) -> PerSlice:
    """Σ x y of each slice, [padded slices], over all or over the first `held` projections."""
    y, x = y[:held], x[:held]
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


def filter(
    to: Array,
    of: Array,
    slots: NDArray[np.int64],
    response: NDArray[np.float32],
    progress: Progress = idle,
) -> None:
    """to[slots] = of[slots], filtered along the detector.

    `response` [size / 2 + 1] is that of the positive frequencies of `size` columns, zero-padded.
    """
    cols, size = of.shape[1], 2 * (response.size - 1)

    def one(slot: np.int64) -> None:
        spectrum = np.fft.rfft(of[slot], size, axis=0)
        spectrum *= response[:, None]
        to[slot] = np.fft.irfft(spectrum, size, axis=0)[:cols]

    each(one, slots, progress)


def divide(sinogram: Array, measured: Array, beams: Beams, smallest: NDArray[np.float32]) -> PerSlice:
    """Replace A x by max(b, 0) / A x, 0 where A x is not above smallest[slice]; return |b - A x|² per slice."""
    return _over_projections(elementwise.divide, sinogram, beams, measured, smallest)


def weigh(sinogram: Array, beams: Beams, factor: NDArray[np.float32]) -> PerSlice:
    """Multiply by `factor` [projections, cols]; return the squared norm per slice from before that."""
    return _over_projections(elementwise.weigh, sinogram, beams, factor)


def _over_projections(kernel: Any, sinogram: Array, beams: Beams, *arguments: NDArray[np.float32]) -> PerSlice:
    slots = beams.slots
    norms = np.zeros((sinogram.shape[0], sinogram.shape[2]))
    run(
        lambda: lambda counter, quota: int(kernel(counter, quota, slots.size, sinogram, slots, *arguments, norms)),
        slots.size,
    )
    total: PerSlice = norms[slots].sum(axis=0)
    return total


def _run(kernel: Any, tasks: int, *arguments: Any) -> None:
    run(lambda: lambda counter, quota: int(kernel(counter, quota, tasks, *arguments)), tasks)
