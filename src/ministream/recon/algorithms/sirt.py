"""SIRT: x ← x + λ C Aᵀ R (b − A x), with R and C the inverse row and column sums of the window's A.

Gilbert, J. Theor. Biol. 36 (1972) 105; in this form Gregor & Benson, IEEE Trans. Med. Imaging 27 (2008) 918.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from ministream.recon import filtered
from ministream.recon.algorithms._iterative import Bounded, Clock, Iterative
from ministream.recon.backend import Backend, Image, Progress
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.state import State


class Options(Bounded):
    """SIRT's own keys of `[recon]`."""

    relaxation: float = Field(default=1.0, gt=0, lt=2, description="λ; above 1 faster, below 1 smoother")
    seed_fbp: bool = Field(
        default=False, description="start again from a filtered back projection once half a turn is in the window"
    )


class Algorithm(Iterative[Options]):
    """SIRT on a slab; holds one residual as large as the window, and the weights."""

    def __init__(self, geometry: Geometry, slices: int, options: Options, backend: Backend) -> None:
        super().__init__(geometry, slices, options, backend)
        self._seed = options.seed_fbp

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """Initialise the image from FBP, once."""
        if self._seed and filtered.coverage_rad(window.angles_rad) >= filtered.HALF_TURN_RAD:
            with clock.timed("back"):
                filtered.reconstruct(self.backend, image, window, self.geometry, self.residual, progress)
                self.backend.limit(image, self.options.floor, self.options.ceiling)
            self.confine(image)
            self._seed = False

    def state(self) -> State:
        """The weights, and whether the image still needs its FBP seed."""
        return {**super().state(), "seed": self._seed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""
        super().restore(state)
        self._seed = state["seed"]

    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """One forward and one back projection of all projections in the window."""
        beams = self.beams(window)
        with clock.timed("forward"):
            self.subtract(image, window, beams, progress)
            norm2 = float(self.backend.weigh(self.residual, beams, self.weights.rows).sum())
        with clock.timed("back"):
            self.backend.back(
                self.residual,
                image,
                beams,
                factor=np.float32(self.options.relaxation) * self.weights.columns,
                lower=self.options.floor,
                upper=self.options.ceiling,
                progress=progress,
            )
        return norm2
