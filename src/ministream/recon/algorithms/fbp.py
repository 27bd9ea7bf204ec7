"""FBP preview: each new projection is filtered and added once, and the one that leaves the window is subtracted.

The image is the filtered back projection of the projections in the window, each weighted by its part of half a turn:
half the gaps to the next directions, shared by projections of one direction. A new projection changes the weights of
its neighbours, which are added and subtracted as well; an update costs at most one back projection of the window. A
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

from ministream.recon import filtered
from ministream.recon.algorithms import Proceed, UpdateReport
from ministream.recon.algorithms._iterative import Masked, always
from ministream.recon.backend import Backend, Image, Progress, Sinogram, idle
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.weights import Alone, Sharing
from ministream.recon.window import Window
from ministream.state import State

_UNCHANGED = 1e-4
"""Weights that change by a smaller fraction remain as they are: angles from an encoder are never evenly spread."""


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
        self._shares_rad = np.zeros(0)
        self._revision = 0

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
            self._forget(window.length)
        if self._revision != window.revision:
            self._revision = window.revision
            self._forget(window.length)
        stamps, shares_rad = np.zeros(window.length, np.int64), np.zeros(window.length)
        stamps[: window.held] = window.stamps
        shares_rad[: window.held] = filtered.shares_rad(window.angles_rad)
        new = np.flatnonzero(stamps != self._stamps)
        moved = np.abs(shares_rad - self._shares_rad) > _UNCHANGED * shares_rad
        moved[new] = False
        known = self._shares_rad[moved].all()  # a projection with weight 0, alone in the window, is not in the image
        if new.size + np.count_nonzero(moved) >= window.held or not known:
            self.backend.clear(image)  # everything is added anew: discard accumulated rounding errors
            self._forget(window.length)
            new, moved = np.arange(window.held), np.zeros(window.length, bool)
        self._adjust(image, np.flatnonzero(moved), shares_rad, progress)
        self._add(image, new[self._stamps[new] != 0], progress, sign=-1.0)
        response = filtered.ramp(window.data.shape[1], self._options.filter)
        self.backend.filter(self._filtered, window.data, new, response, progress)
        self._angles_rad[: window.held] = window.angles_rad
        self._weigh(new, shares_rad)
        self._add(image, new, progress)
        self._stamps = stamps
        self._shares_rad[new] = shares_rad[new]
        if self._options.circular_mask:
            self.backend.mask(image, self._geometry.circle())
        return UpdateReport(iterations=1, residual_norm2=(), forward_s=0.0, back_s=time.perf_counter() - start)

    def move_axis(self, axis_col: float) -> None:
        """Set the rotation axis column, from the next update on, for all projections in the window."""
        self._geometry = dataclasses.replace(self._geometry, axis_col=axis_col)
        self._forget(len(self._stamps))

    def state(self) -> State:
        """Empty: the first update after a restart adds the whole window again, without old rounding errors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _forget(self, length: int) -> None:
        """The image holds nothing yet."""
        self._angles_rad, self._shares_rad = np.zeros(length), np.zeros(length)
        self._stamps = np.zeros(length, dtype=np.int64)

    def _adjust(
        self, image: Image, slots: NDArray[np.int64], shares_rad: NDArray[np.float64], progress: Progress
    ) -> None:
        """Add what the changed weights of projections differ by."""
        if not slots.size:
            return
        before, change = self._shares_rad, np.zeros_like(shares_rad)
        change[slots] = shares_rad[slots] - before[slots]
        self._weigh(slots, np.divide(change, before, out=np.zeros_like(change), where=before > 0))
        self._add(image, slots, progress)
        self._weigh(slots, np.divide(shares_rad, change, out=np.zeros_like(change), where=change != 0))
        self._shares_rad[slots] = shares_rad[slots]

    def _weigh(self, slots: NDArray[np.int64], factors: NDArray[np.float64]) -> None:
        filtered.weigh(self.backend, self._filtered, self._beams(slots), factors, self._geometry.cols)

    def _add(self, image: Image, slots: NDArray[np.int64], progress: Progress, *, sign: float = 1.0) -> None:
        filtered.add(
            self.backend, image, self._filtered, self._beams(slots), n=self._geometry.n, sign=sign, progress=progress
        )

    def _beams(self, slots: NDArray[np.int64]) -> Beams:
        return Beams.at(self._angles_rad, self._geometry.axis_col, slots)
