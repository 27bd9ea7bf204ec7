"""SIRT: x ← x + λ C Aᵀ R (b − A x), with R and C the inverse row and column sums of the window's A.

Gilbert, J. Theor. Biol. 36 (1972) 105; in this form Gregor & Benson, IEEE Trans. Med. Imaging 27 (2008) 918.
"""

from __future__ import annotations

import time
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ministream.config import Section
from ministream.recon import kernels
from ministream.recon.algorithms import Progress, Report
from ministream.recon.geometry import Geometry, aligned_zeros
from ministream.recon.kernels.threads import idle
from ministream.recon.weights import Weights
from ministream.recon.window import Window


class Options(Section):
    """SIRT's own keys of `[recon]`."""

    relaxation: float = Field(default=1.0, gt=0, lt=2, description="λ; above 1 faster, below 1 smoother")
    non_negative: bool = Field(default=False, description="no attenuation below 0")
    lower: float | None = Field(default=None, description="smallest attenuation per pixel")
    upper: float | None = Field(default=None, description="largest attenuation per pixel")
    circular_mask: bool = Field(default=False, description="zero outside the circle that every projection sees")

    @model_validator(mode="after")
    def _box(self) -> Self:
        if self.upper is not None and self.upper <= self.floor:
            raise ValueError(f"upper {self.upper} must be larger than the lower limit {self.floor}")
        return self

    @property
    def floor(self) -> float:
        """The lower limit in effect."""
        lower = -np.inf if self.lower is None else self.lower
        return max(lower, 0.0) if self.non_negative else lower

    @property
    def ceiling(self) -> float:
        """The upper limit in effect."""
        return np.inf if self.upper is None else self.upper


class Algorithm:
    """SIRT on a slab; holds one residual as large as the window, and the weights."""

    def __init__(self, geometry: Geometry, slices: int, options: Options) -> None:
        self._geometry = geometry
        self._slices = slices
        self._options = options
        self._support = geometry.circle() if options.circular_mask else None
        self._weights: Weights | None = None
        self._residual = np.zeros((0, 0, 0), np.float32)

    def update(
        self, image: NDArray[np.float32], window: Window, iterations: int, *, progress: Progress = idle
    ) -> Report:
        """`iterations` times: one forward and one back projection of everything in the window."""
        weights = self._prepare(image, window)
        beams = kernels.Beams.at(window.angles_rad, self._geometry.axis_col)
        factor = np.float32(self._options.relaxation) * weights.columns
        norms, forward_s, back_s = [], 0.0, 0.0
        for _ in range(iterations):
            start = time.perf_counter()
            np.copyto(self._residual[: window.held], window.data[: window.held])
            kernels.forward(image, self._residual, beams, gain=-1.0, progress=progress)
            norms.append(float(kernels.weigh(self._residual, beams, weights.rows).sum()))
            middle = time.perf_counter()
            kernels.back(
                self._residual, image, beams, factor=factor,
                lower=self._options.floor, upper=self._options.ceiling, progress=progress,
            )  # fmt: skip
            forward_s += middle - start
            back_s += time.perf_counter() - middle
        return Report(iterations=iterations, residual_norm2=tuple(norms), forward_s=forward_s, back_s=back_s)

    def _prepare(self, image: NDArray[np.float32], window: Window) -> Weights:
        if self._weights is None:
            self._weights = Weights(self._geometry, window.length, self._support)
            self._residual = aligned_zeros(window.data.shape)
        if self._support is not None:
            image[~self._support] = 0
        self._weights.update(window)
        return self._weights
