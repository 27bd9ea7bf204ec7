"""FISTA-TV: accelerated proximal gradient on  ½ (b − A x)ᵀ R (b − A x) / L + strength · TV(x).

R holds the inverse row sums; L, the largest column sum of R-weighted A, bounds the curvature, so that no power method
is needed: Aᵀ R A ≤ max(Aᵀ 1). TV is isotropic, slice by slice. `strength` is in attenuation per pixel: the
maximum reduction of an edge per iteration. Momentum restarts at every update. The dual variable of TV is kept
between updates.

Beck & Teboulle, IEEE Trans. Image Process. 18 (2009) 2419.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from ministream.recon.algorithms._iterative import Bounded, Clock, Iterative
from ministream.recon.backend import Backend, Image, Progress
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.state import Slabwise, State


class Options(Bounded):
    """FISTA-TV's own keys of `[recon]`."""

    strength: float = Field(default=1e-4, gt=0, description="weight of TV, attenuation per pixel")
    tv_passes: int = Field(default=10, ge=1, description="passes over the image that solve for TV in an iteration")


class Algorithm(Iterative[Options]):
    """FISTA-TV on a slab; holds four more images."""

    images = 5

    def __init__(self, geometry: Geometry, slices: int, options: Options, backend: Backend) -> None:
        super().__init__(geometry, slices, options, backend)
        self._ahead = backend.new_image(geometry, slices)
        self._previous = backend.new_image(geometry, slices)
        self._dual = backend.new_dual(self._ahead)

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """Start without momentum."""
        self.backend.copy(self._ahead, image)
        self._momentum = 1.0
        seen = self.weights.columns[self.weights.columns > 0]
        self._step = np.float32(seen.min() if seen.size else 0.0)

    def state(self) -> State:
        """The weights, and the dual variable."""
        dual = self.backend.host(self._dual)[..., : self.slices]
        return {**super().state(), "dual": Slabwise(array=dual, axis=3)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""
        super().restore(state)
        padded = np.zeros_like(self.backend.host(self._dual))
        padded[..., : self.slices] = state["dual"]
        self.backend.copy(self._dual, padded)

    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """One forward and one back projection, then the TV step; the residual is that of the extrapolated point."""
        backend, beams = self.backend, self.beams(window)
        with clock.timed("forward"):
            self.subtract(self._ahead, window, beams, progress)
            norm2 = float(backend.weigh(self.residual, beams, self.weights.rows).sum())
        with clock.timed("back"):
            step = self._step * (self.weights.columns > 0)
            backend.back(self.residual, self._ahead, beams, factor=step.astype(np.float32), progress=progress)
            backend.copy(self._previous, image)
            threshold, passes = self.options.strength, self.options.tv_passes
            backend.denoise(self._ahead, image, self._dual, threshold=threshold, passes=passes)
            self._limit(image)
            following = (1 + math.sqrt(1 + 4 * self._momentum**2)) / 2
            gain = (self._momentum - 1) / following
            backend.copy(self._ahead, image)
            backend.combine(self._ahead, self._previous, alpha=-gain, beta=1 + gain)
            self._momentum = following
        return norm2

    def _limit(self, image: Image) -> None:
        if np.isfinite(self.options.floor) or np.isfinite(self.options.ceiling):
            self.backend.limit(image, self.options.floor, self.options.ceiling)
        self.confine(image)
