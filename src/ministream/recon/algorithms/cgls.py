"""CGLS: conjugate gradients on Aᵀ A x = Aᵀ b, each slice with its own step lengths.

Restarted from the image at every update, because the window's A has changed; iterations of one update build on each
other. Fits fast and then fits the noise: few iterations are the regularisation. No limits on the image.

Björck, Numerical Methods for Least Squares Problems (1996), algorithm 7.4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.recon import kernels
from ministream.recon.algorithms import Image, Progress
from ministream.recon.algorithms._iterative import Clock, Iterative, Masked, unit
from ministream.recon.geometry import Geometry, aligned_zeros
from ministream.recon.kernels.arrays import PerSlice, combine, dot
from ministream.recon.window import Window


class Options(Masked):
    """CGLS's own keys of `[recon]`."""


class Algorithm(Iterative[Options]):
    """CGLS on a slab; holds two more images and one more sinogram."""

    images = 3
    residuals = 2
    per_pixel = 8
    weighted = False

    def __init__(self, geometry: Geometry, slices: int, options: Options) -> None:
        super().__init__(geometry, slices, options)
        self._direction = geometry.new_image(slices)
        self._gradient = geometry.new_image(slices)
        self._seen: NDArray[np.float32] = aligned_zeros((0, 0, 0))

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """r = b − A x, p = s = Aᵀ r."""
        if self._seen.shape != window.data.shape:
            self._seen = aligned_zeros(window.data.shape)
        with clock.timed("forward"):
            self.subtract(image, window, self.beams(window), progress)
        with clock.timed("back"):
            self._steepest(window, progress)
        self._direction[:] = self._gradient
        self._gamma = dot(self._gradient, self._gradient)

    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """One step along the direction, and the next direction."""
        beams, held = self.beams(window), window.held
        residual, seen = self.residual[:held], self._seen[:held]
        norm2 = float(dot(residual, residual).sum())
        with clock.timed("forward"):
            seen[:] = 0
            kernels.forward(self._direction, self._seen, beams, progress=progress)
            alpha = _ratio(self._gamma, dot(seen, seen))
            combine(image, self._direction, alpha=alpha)
            combine(residual, seen, alpha=-alpha)
        with clock.timed("back"):
            self._steepest(window, progress)
            gamma = dot(self._gradient, self._gradient)
            combine(self._direction, self._gradient, beta=_ratio(gamma, self._gamma))
            self._gamma = gamma
        return norm2

    def _steepest(self, window: Window, progress: Progress) -> None:
        self._gradient[:] = 0
        factor = unit(self._gradient) if self.support is None else self.support.astype(np.float32)
        kernels.back(self.residual, self._gradient, self.beams(window), factor=factor, progress=progress)


def _ratio(numerator: PerSlice, denominator: PerSlice) -> PerSlice:
    """Where the denominator is 0 the slice is solved (or padding): 0."""
    result: NDArray[np.float64] = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return result
