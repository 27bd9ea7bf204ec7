"""What the iterative algorithms share: the loop, the weights, and the limits on the image."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ministream.config import Section
from ministream.recon import kernels
from ministream.recon.algorithms import Image, Proceed, Progress, UpdateReport
from ministream.recon.geometry import Geometry, aligned_zeros
from ministream.recon.kernels.threads import idle
from ministream.recon.weights import Alone, Sharing, Weights
from ministream.recon.window import Window


class Masked(Section):
    """The option of every algorithm."""

    circular_mask: bool = Field(default=False, description="zero outside the circle that every projection sees")


class Bounded(Masked):
    """Options of the algorithms that can keep the image within limits."""

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
    """Seconds spent in the two directions."""

    def __init__(self) -> None:
        self.seconds = {"forward": 0.0, "back": 0.0}

    @contextmanager
    def timed(self, direction: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[direction] += time.perf_counter() - start


def always(norm2: float) -> bool:
    """A `proceed` that never ends an update early."""
    return True


O = TypeVar("O", bound=Masked)  # noqa: E741


class Iterative(ABC, Generic[O]):
    """The loop of an update; a subclass says what an iteration is.

    `residual` is one array as large as the window's data; one that is not `weighted` has no weights.
    """

    images: ClassVar[int] = 1
    residuals: ClassVar[int] = 1
    per_pixel: ClassVar[int] = 20
    weighted: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, slices: int, options: O) -> None:
        self.geometry = geometry
        self.slices = slices
        self.options = options
        self.sharing: Sharing = Alone()
        self.support = geometry.circle() if options.circular_mask else None
        self.residual: NDArray[np.float32] = np.zeros((0, 0, 0), np.float32)
        self._weights: Weights | None = None

    @property
    def weights(self) -> Weights:
        """Those of what the window held when the update began."""
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
        """Up to `iterations` iterations with what the window holds."""
        self._prepare(image, window)
        clock, norms = Clock(), []
        self.begin(image, window, clock, progress)
        for _ in range(iterations):
            norms.append(self.iterate(image, window, clock, progress))
            if not proceed(norms[-1]):
                break
        if self._weights is not None:
            self._weights.settle()  # not every algorithm asks for all of them
        seconds = clock.seconds
        return UpdateReport(
            iterations=len(norms), residual_norm2=tuple(norms), forward_s=seconds["forward"], back_s=seconds["back"]
        )

    def begin(self, image: Image, window: Window, clock: Clock, progress: Progress) -> None:
        """What an update does before its first iteration."""

    @abstractmethod
    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """One iteration; returns |b - A x|² from before it."""

    def move_axis(self, axis_col: float) -> None:
        """From the next update on the rotation axis is at this detector column, for all the window holds."""
        self.geometry = dataclasses.replace(self.geometry, axis_col=axis_col)
        self._weights = None
        if self.support is not None:
            self.support = self.geometry.circle()

    def beams(self, window: Window, slots: NDArray[np.int64] | None = None) -> kernels.Beams:
        """The window's projections, or `slots` of them."""
        return kernels.Beams.at(window.angles_rad, self.geometry.axis_col, slots)

    def subtract(self, image: Image, window: Window, beams: kernels.Beams, progress: Progress) -> None:
        """residual = b - A image for the projections of `beams`."""
        for slot in beams.slots:
            self.residual[slot] = window.data[slot]
        kernels.forward(image, self.residual, beams, gain=-1.0, progress=progress)

    def _prepare(self, image: Image, window: Window) -> None:
        if self.residual.shape != window.data.shape:
            self.residual = aligned_zeros(window.data.shape)
        if self.support is not None:
            image[~self.support] = 0
        if self.weighted:
            if self._weights is None:
                self._weights = Weights(self.geometry, window.length, self.support, self.sharing)
            self._weights.update(window)


def unit(image: Any) -> NDArray[np.float32]:
    """A factor of 1 for every pixel."""
    return np.ones(image.shape[:2], np.float32)
