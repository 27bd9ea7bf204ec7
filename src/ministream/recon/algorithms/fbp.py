"""FBP preview: each new projection is filtered and added once, and the one that leaves the window is subtracted.

The image is the filtered back projection of the projections in the window, all with the same weight (their share of
the covered angle): correct for evenly spread directions (sequential, interlaced, golden-angle), in any order. A
usable slice exists after the first half turn, before that a limited-angle one. `iterations` has no effect: an update
is one back projection of the changes. There is no forward projection, so no residual is reported.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream.recon.algorithms import Proceed, UpdateReport
from ministream.recon.algorithms import _filtered as filtered
from ministream.recon.algorithms._iterative import Masked, always
from ministream.recon.backend import Backend, Image, Progress, Sinogram, idle
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.weights import Alone, Sharing
from ministream.recon.window import Window
from ministream.state import State


class Options(Masked):
    """FBP's own keys of `[recon]`."""

    filter: Literal["ramp", "shepp", "cosine", "hann"] = Field(default="shepp", description="window on the ramp")


class Algorithm:
    """Incremental FBP on a slab; keeps the filtered projections, as large as the window."""

    images: ClassVar[int] = 1
    residuals: ClassVar[int] = 1
    per_pixel: ClassVar[int] = 4

    def __init__(self, geometry: Geometry, slices: int, options: Options, backend: Backend) -> None:
        self.backend = backend
        self.sharing: Sharing = Alone()
        self._geometry = geometry
        self._options = options
        self._filtered: Sinogram = None
        self._window_shape: tuple[int, ...] = ()
        self._angles_rad = np.zeros(0)
        self._stamps = np.zeros(0, dtype=np.int64)
        self._weight_rad = 0.0

    def update(
        self,
        image: Image,
        window: Window,
        iterations: int,
        *,
        progress: Progress = idle,
        proceed: Proceed = always,
    ) -> UpdateReport:
        """Bring the image up to date with the window."""
        start = time.perf_counter()
        if self._window_shape != window.data.shape:
            self._window_shape = window.data.shape
            self._filtered = self.backend.new_sinogram(window.data)
            self._angles_rad = np.zeros(window.length)
            self._stamps = np.zeros(window.length, dtype=np.int64)
        stamps = np.zeros_like(self._stamps)
        stamps[: window.held] = window.stamps
        changed = np.flatnonzero(stamps != self._stamps)
        weight_rad = filtered.coverage_rad(window.angles_rad) / max(window.held, 1)
        if changed.size == window.held or not self._weight_rad:
            self.backend.clear(image)  # all projections are new: discard accumulated rounding errors
            changed = np.arange(window.held)
        else:
            self.backend.scale(image, weight_rad / self._weight_rad)
            gone = changed[self._stamps[changed] != 0]
            self._add(image, gone, -weight_rad, progress)
        response = filtered.ramp(window.data.shape[1], self._options.filter)
        self.backend.filter(self._filtered, window.data, changed, response, progress)
        self._angles_rad[: window.held] = window.angles_rad
        self._add(image, changed, weight_rad, progress)
        self._stamps, self._weight_rad = stamps, weight_rad
        if self._options.circular_mask:
            self.backend.mask(image, self._geometry.circle())
        return UpdateReport(iterations=1, residual_norm2=(), forward_s=0.0, back_s=time.perf_counter() - start)

    def move_axis(self, axis_col: float) -> None:
        """Set the rotation axis column, from the next update on, for all projections in the window."""
        self._geometry = dataclasses.replace(self._geometry, axis_col=axis_col)
        self._weight_rad = 0.0

    def state(self) -> State:
        """Empty: the first update after a restart adds the whole window again, without old rounding errors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _add(self, image: Image, slots: NDArray[np.int64], weight_rad: float, progress: Progress) -> None:
        beams = Beams.at(self._angles_rad, self._geometry.axis_col, slots)
        filtered.add(
            self.backend, image, self._filtered, beams, n=self._geometry.n, weight_rad=weight_rad, progress=progress
        )
