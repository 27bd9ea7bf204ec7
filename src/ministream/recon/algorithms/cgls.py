"""CGLS: conjugate gradients on Aᵀ A x = Aᵀ b, each slice with its own step lengths.

Restarted from the image at every update, because the window's A has changed; iterations of one update build on each
other. Converges fast and then fits the noise: few iterations act as regularisation. No limits on the image.

Björck, Numerical Methods for Least Squares Problems (1996), algorithm 7.4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.recon.algorithms._iterative import Clock, Iterative, Masked
from ministream.recon.backend import Backend, Image, PerSlice, Progress
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window


class Options(Masked):
    """CGLS's own keys of `[recon]`."""


class Algorithm(Iterative[Options]):
    """CGLS on a slab; holds two more images and one more sinogram."""

    images = 3
    residuals = 2
    per_pixel = 8
    weighted = False

    def __init__(self, geometry: Geometry, slices: int, options: Options, backend: Backend) -> None:
        super().__init__(geometry, slices, options, backend)
        self._direction = backend.new_image(geometry, slices)
        self._gradient = backend.new_image(geometry, slices)

    def allocate(self, window: Window) -> None:
        """Allocate the residual and the forward projection of the direction."""
        super().allocate(window)
        self._seen = self.backend.new_sinogram(window.data)

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """r = b − A x, p = s = Aᵀ r."""
        with clock.timed("forward"):
            self.subtract(image, window, self.beams(window), progress)
        with clock.timed("back"):
            self._steepest(window, progress)
        self.backend.copy(self._direction, self._gradient)
        self._gamma = self.backend.dot(self._gradient, self._gradient)

    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """One step along the direction, then compute the next direction."""
        backend, beams, held = self.backend, self.beams(window), window.held
        norm2 = float(backend.dot(self.residual, self.residual, held).sum())
        with clock.timed("forward"):
            backend.clear(self._seen, beams.slots)
            backend.forward(self._direction, self._seen, beams, progress=progress)
            alpha = _ratio(self._gamma, backend.dot(self._seen, self._seen, held))
            backend.combine(image, self._direction, alpha=alpha)
            backend.combine(self.residual, self._seen, alpha=-alpha, held=held)
        with clock.timed("back"):
            self._steepest(window, progress)
            gamma = backend.dot(self._gradient, self._gradient)
            backend.combine(self._direction, self._gradient, beta=_ratio(gamma, self._gamma))
            self._gamma = gamma
        return norm2

    def _steepest(self, window: Window, progress: Progress) -> None:
        self.backend.clear(self._gradient)
        n = self.geometry.n
        factor = np.ones((n, n), np.float32) if self.support is None else self.support.astype(np.float32)
        self.backend.back(self.residual, self._gradient, self.beams(window), factor=factor, progress=progress)


def _ratio(numerator: PerSlice, denominator: PerSlice) -> PerSlice:
    """The quotient, or 0 where the denominator is 0: the slice has converged or is padding."""
    result: NDArray[np.float64] = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return result
