"""Resolution of an image from two halves of its data, and contrast-to-noise of its regions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError

Image = NDArray[np.float32]
Curve = NDArray[np.float64]

ONE_SEVENTH = 1 / 7
FEWEST = 16  # slices of a shell correlation


@dataclass(frozen=True, kw_only=True, slots=True)
class FourierCorrelation:
    """Correlation of two images by spatial frequency, in cycles per pixel up to 0.5, without the mean of the image.

    `half_bit` is the threshold at which an image of both halves has half a bit of information per voxel: M. van Heel
    and M. Schatz, J. Struct. Biol. 151 (2005) 250. `voxels` counts what is averaged in each ring or shell.
    """

    frequency: Curve
    correlation: Curve
    half_bit: Curve
    voxels: Curve

    @property
    def resolution_half_bit(self) -> float | None:
        """Pixels: one over the frequency at which the correlation first falls to `half_bit`; None if it never does."""
        return self._resolution(self.half_bit)

    @property
    def resolution_one_seventh(self) -> float | None:
        """Pixels, at the fixed threshold 1/7: P. B. Rosenthal and R. Henderson, J. Mol. Biol. 333 (2003) 721."""
        return self._resolution(np.full_like(self.correlation, ONE_SEVENTH))

    def _resolution(self, threshold: Curve) -> float | None:
        above = self.correlation - threshold
        below = np.flatnonzero(~(above > 0))
        if below.size == 0:
            return None
        last = int(below[0])
        if last == 0:
            return 1 / float(self.frequency[0])
        # between the last ring above the threshold and the first one below
        part = above[last - 1] / (above[last - 1] - above[last]) if math.isfinite(above[last]) else 0.0
        return 1 / float(self.frequency[last - 1] + part * (self.frequency[last] - self.frequency[last - 1]))


def ring_correlation(pairs: Iterable[tuple[Image, Image]]) -> FourierCorrelation:
    """Fourier ring correlation of pairs of slices [rows, cols] of one shape, over all pairs together.

    Raises InputError for unlike shapes, or values that are not finite.
    """
    total: NDArray[np.float64] | None = None
    for first, second in pairs:
        sums = _sums(first, second)
        total = sums if total is None else total + sums
    if total is None:
        raise InputError("there are no slices to compare: choose some with --slices")
    return _correlation(total)


def shell_correlation(first: Image, second: Image) -> FourierCorrelation:
    """Fourier shell correlation of two volumes [slice, row, col]; takes eight times the memory of one beside both.

    Raises InputError for unlike shapes, fewer than 16 slices, or values that are not finite.
    """
    if min(first.shape) < FEWEST:
        raise InputError(f"a shell correlation of {min(first.shape)} slices means nothing: expected {FEWEST} or more")
    return _correlation(_sums(first, second))


def _sums(first: Image, second: Image) -> NDArray[np.float64]:
    """[4, ring]: products, both powers, and the number of voxels."""
    if first.shape != second.shape:
        raise InputError(f"halves {list(first.shape)} and {list(second.shape)} differ in shape, expected one shape")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("a half has NaN or infinite pixels, expected numbers: choose others with --slices")
    a, b = (np.fft.rfftn(_windowed(half)) for half in (first, second))
    ring, weight = _rings(first.shape)
    products = ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2, np.ones(a.shape))
    most = max(first.shape) // 2
    return np.array([np.bincount(ring, (each * weight).ravel(), most + 2)[1 : most + 1] for each in products])


def _windowed(image: Image) -> Image:
    """The image without its mean, in a Hann window: the edges of an image correlate at every frequency."""
    windowed: Image = image - image.mean()
    for axis, size in enumerate(image.shape):
        shape = [1] * image.ndim
        shape[axis] = size
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)
        windowed *= hann.astype(np.float32).reshape(shape)
    return windowed


def _rings(shape: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ring of each coefficient of rfftn, one per frequency of the longest side, and how often it counts."""
    sides = [np.fft.fftfreq(size) for size in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    radius = np.sqrt(sum(side**2 for side in np.meshgrid(*sides, indexing="ij")))
    most = max(shape) // 2
    weight = np.full(sides[-1].size, 2.0)  # the other half of the plane is the conjugate
    weight[0] = 1.0
    if shape[-1] % 2 == 0:
        weight[-1] = 1.0
    return np.minimum(np.rint(radius * max(shape)), most + 1).astype(np.intp).ravel(), weight


def _correlation(sums: NDArray[np.float64]) -> FourierCorrelation:
    product, first, second, voxels = sums
    power, root = np.sqrt(first * second), np.sqrt(voxels)
    return FourierCorrelation(
        frequency=np.arange(1, voxels.size + 1) * 0.5 / voxels.size,
        correlation=np.divide(product, power, out=np.zeros_like(product), where=power > 0),
        half_bit=(0.2071 * root + 1.9102) / (1.2071 * root + 0.9102),
        voxels=voxels,
    )


def contrast_to_noise(signal: Image, background: Image) -> float:
    """|mean of the signal − mean of the background| / standard deviation of the background.

    J. T. Bushberg et al., The Essential Physics of Medical Imaging (2012), chapter 4. Infinite without noise.
    Raises InputError for a region without at least two pixels, or with values that are not finite.
    """
    for name, region in (("signal", signal), ("background", background)):
        if region.size < 2 or not np.isfinite(region).all():
            raise InputError(f"the {name} has {region.size} pixels or NaN among them: expected two or more numbers")
    noise = float(background.std(ddof=1, dtype=np.float64))
    contrast = abs(float(signal.mean(dtype=np.float64)) - float(background.mean(dtype=np.float64)))
    return contrast / noise if noise else math.inf
