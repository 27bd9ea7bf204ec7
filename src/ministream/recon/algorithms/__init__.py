"""Algorithms: each module has `Options` and `Algorithm`; all are windowed, warm-started and run on a `Backend`.

An update improves the image in place, [n, n, padded slices], from the projections in the window. One iteration uses
every projection of the window once forward and once back, unless the module states otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ministream.recon.backend import Backend, Image, Progress
from ministream.recon.weights import Sharing
from ministream.recon.window import Window
from ministream.state import State

Proceed = Callable[[float], bool]
"""Called after each iteration with |b - A x|² from before it; returning False ends the update."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """The result of one update.

    `residual_norm2` is the slab's |b - A x|² before each iteration: ranks may sum it. Seconds are wall clock.
    """

    iterations: int
    residual_norm2: tuple[float, ...]
    forward_s: float
    back_s: float


class Algorithm(Protocol):
    """The interface of an algorithm.

    `images` and `residuals`: peak numbers of arrays of the size of the image and of the window's data, including the
    image; `per_pixel`: bytes per pixel of one slice for the weights. `backend` does the arithmetic and creates the
    images. `sharing`: the ranks that may share work; with more than this rank, every update is collective.
    """

    images: ClassVar[int]
    residuals: ClassVar[int]
    per_pixel: ClassVar[int]
    backend: Backend
    sharing: Sharing

    def update(
        self, image: Image, window: Window, iterations: int, *, progress: Progress = ..., proceed: Proceed = ...
    ) -> UpdateReport:
        """Improve `image` by up to `iterations` iterations; `progress` is called regularly, from this thread."""
        ...

    def move_axis(self, axis_col: float) -> None:
        """Set the rotation axis column, from the next update on, for all projections in the window."""
        ...

    def state(self) -> State:
        """The state that an update passes to the next one, besides the image."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`, with plain arrays, for the same options; collective over `sharing`."""
        ...
