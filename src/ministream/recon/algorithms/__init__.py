"""Algorithms: each module has `Options` and `Algorithm`; all are windowed, warm-started and run on a `Backend`.

An update improves the image in place, [n, n, padded slices], with what the window holds. One iteration uses every
projection of the window once forward and once back, unless the module says otherwise.
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
"""Asked after each iteration with |b - A x|² from before it; False ends the update."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one update did.

    `residual_norm2` is the slab's |b - A x|² before each iteration: ranks may sum it. Seconds are wall clock.
    """

    iterations: int
    residual_norm2: tuple[float, ...]
    forward_s: float
    back_s: float


class Algorithm(Protocol):
    """What every algorithm offers.

    `images` and `residuals` say how many arrays as large as the image and the window's data it needs at its peak,
    the image included; `per_pixel` how many bytes per pixel of one slice its weights take. `backend` does the
    arithmetic and makes the images. `sharing` are the ranks that it may share work with: with others than itself, every
    update is collective.
    """

    images: ClassVar[int]
    residuals: ClassVar[int]
    per_pixel: ClassVar[int]
    backend: Backend
    sharing: Sharing

    def update(
        self, image: Image, window: Window, iterations: int, *, progress: Progress = ..., proceed: Proceed = ...
    ) -> UpdateReport:
        """Improve `image` by up to `iterations` iterations; `progress` is called in between, from this thread."""
        ...

    def move_axis(self, axis_col: float) -> None:
        """From the next update on the rotation axis is at this detector column, for all the window holds."""
        ...

    def state(self) -> State:
        """What an update leaves for the next beside the image."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, with bare arrays, for the same options; collective over `sharing`."""
        ...
