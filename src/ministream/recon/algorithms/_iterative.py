"""Common code of the iterative algorithms: the loop, the weights, and the limits on the image."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ministream.config import Section
from ministream.recon.algorithms import Proceed, UpdateReport
from ministream.recon.backend import Backend, Image, Progress, Sinogram, idle
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.weights import Alone, Sharing, Weights
from ministream.recon.window import Window
from ministream.state import State


class Masked(Section):
    """The option of every algorithm."""

    circular_mask: bool = Field(default=False, description="zero outside the circle that every projection sees")


class Bounded(Masked):
    """Options of the algorithms that support limits on the image."""

    non_negative: bool = Field(default=False, description="no attenuation below 0")
    lower: float | None = Field(default=None, description="smallest attenuation per pixel")
    upper: float | None = Field(default=None, description="largest attenuation per pixel")

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


class Clock:
    """Seconds spent in forward and back projection, without those spent waiting for other ranks."""

    def __init__(self, waited_s: Callable[[], float]) -> None:
        self.seconds = {"forward": 0.0, "back": 0.0}
        self._waited_s = waited_s

    @contextmanager
    def timed(self, direction: str) -> Iterator[None]:
        start, waited_s = time.perf_counter(), self._waited_s()
        yield
        self.seconds[direction] += time.perf_counter() - start - (self._waited_s() - waited_s)


def always(norm2: float) -> bool:
    """A `proceed` that never ends an update early."""
    return True


O = TypeVar("O", bound=Masked)  # noqa: E741


class Iterative(ABC, Generic[O]):
    """The loop of an update; a subclass implements an iteration.

    `residual` is one array as large as the window's data; one that is not `weighted` has no weights.
    """

    images: ClassVar[int] = 1
    residuals: ClassVar[int] = 1
    per_pixel: ClassVar[int] = 20
    weighted: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, slices: int, options: O, backend: Backend) -> None:
        self.geometry = geometry
        self.slices = slices
        self.options = options
        self.backend = backend
        self.sharing: Sharing = Alone()
        self.support = geometry.circle() if options.circular_mask else None
        self.residual: Sinogram = None
        self._window_shape: tuple[int, ...] = ()
        self._weights: Weights | None = None

    @property
    def weights(self) -> Weights:
        """The weights of the projections in the window when the update began."""
        if self._weights is None:
            raise RuntimeError("weights exist from the first update on")
        return self._weights

    def update(
        self,
        image: Image,
        window: Window,
        iterations: int,
        *,
        progress: Progress = idle,
        proceed: Proceed = always,
    ) -> UpdateReport:
        """Run up to `iterations` iterations with the projections in the window."""
        self._prepare(image, window)
        clock, norms = Clock(lambda: self._weights.waited_s if self._weights is not None else 0.0), []
        self.begin(image, window, clock, progress)
        for _ in range(iterations):
            norms.append(self.iterate(image, window, clock, progress))
            if not proceed(norms[-1]):
                break
        if self._weights is not None:
            self._weights.settle()  # not every algorithm uses all of them
        seconds = clock.seconds
        return UpdateReport(
            iterations=len(norms), residual_norm2=tuple(norms), forward_s=seconds["forward"], back_s=seconds["back"]
        )

    def allocate(self, window: Window) -> None:
        """Allocate the arrays of the size of the window's data."""
        self.residual = self.backend.new_sinogram(window.data)

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """Prepare an update, before its first iteration."""

    @abstractmethod
    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """One iteration; returns |b - A x|² from before it."""

    def move_axis(self, axis_col: float) -> None:
        """Set the rotation axis column, from the next update on, for all projections in the window."""
        self.geometry = dataclasses.replace(self.geometry, axis_col=axis_col)
        self._weights = None
        if self.support is not None:
            self.support = self.geometry.circle()

    def state(self) -> State:
        """The state that an update passes to the next one, besides the image."""
        weights = self._weights.state() if self._weights is not None else {}
        return {f"weights.{name}": value for name, value in weights.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`, for the same options; collective over `sharing`."""
        weights = {name.removeprefix("weights."): value for name, value in state.items() if name.startswith("weights.")}
        if weights:
            length = len(weights["stamps"])
            self._weights = Weights(self.geometry, length, self.support, self.sharing, self.backend)
            self._weights.restore(weights)

    def beams(self, window: Window, slots: NDArray[np.int64] | None = None) -> Beams:
        """The window's projections, or `slots` of them."""
        return Beams.at(window.angles_rad, self.geometry.axis_col, slots)

    def subtract(self, image: Image, window: Window, beams: Beams, progress: Progress) -> None:
        """residual = b - A image for the projections of `beams`."""
        self.backend.copy(self.residual, window.data, beams.slots)
        self.backend.forward(image, self.residual, beams, gain=-1.0, progress=progress)

    def confine(self, image: Image) -> None:
        """image = 0 outside the circle, if the mask is enabled."""
        if self.support is not None:
            self.backend.mask(image, self.support)

    def _prepare(self, image: Image, window: Window) -> None:
        if self._window_shape != window.data.shape:
            self._window_shape = window.data.shape
            self.allocate(window)
        self.confine(image)
        if self.weighted:
            if self._weights is None:
                self._weights = Weights(self.geometry, window.length, self.support, self.sharing, self.backend)
            self._weights.update(window)
