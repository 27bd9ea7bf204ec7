"""Iterative algorithms: each module has `Options` and `Algorithm`, all on the two kernels, all warm-started.

An update improves the image in place, [n, n, padded slices], with what the window holds. One iteration is one
forward and one back projection of everything held, unless the module says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ministream.recon.window import Window

Progress = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one update did.

    `residual_norm2` is the slab's |b - A x|² before each iteration: ranks may sum it. Seconds are wall clock.
    """

    iterations: int
    residual_norm2: tuple[float, ...]
    forward_s: float
    back_s: float


class Algorithm(Protocol):
    """What every algorithm offers."""

    def update(
        self, image: NDArray[np.float32], window: Window, iterations: int, *, progress: Progress = ...
    ) -> Report:
        """Improve `image` by `iterations` iterations; `progress` is called in between, from this thread."""
        ...
