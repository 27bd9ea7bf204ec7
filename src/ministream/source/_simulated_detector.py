"""The detector of the phantom source: beam, fixed pattern, Poisson noise and defects."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream import config, log
from ministream.model import FrameKind

_LOG = log.get(__name__)

TOP = float(np.iinfo(np.uint16).max)

Array = NDArray[np.float64]
Counts = Annotated[float, Field(ge=0, le=1e9)]


class DetectorOptions(config.Section):
    """The part of `[source]` that describes the beam and the detector."""

    i0: Counts = Field(default=50_000.0, description="brightest flat pixel above dark, counts")
    dark: Counts = Field(default=100.0, description="brightest dark pixel, counts")
    fixed_pattern: float = Field(default=0.1, ge=0, lt=1, description="unevenness of flats and darks; 0: uniform")
    noise: bool = Field(default=True, description="Poisson noise in every frame")
    drift: float = Field(default=0.0, ge=-9, lt=1, description="share of the beam that is lost by the end of the scan")
    rings: float = Field(default=0.0, ge=0, lt=1, description="change of the columns' response after the flats")
    zingers: float = Field(
        default=0.0, ge=0, le=1e4, description="mean number of pixels per image that stray photons hit"
    )
    dead: int = Field(default=0, ge=0, description="pixels without signal")
    saturated: int = Field(default=0, ge=0, description="pixels that are always at the top of their range")
    dtype: Literal["uint16", "float32"] = Field(default="uint16", description="uint16 saturates at 65535")


class SimulatedDetector:
    """Exposes frames of [rows, cols]; what it adds depends on the seed, the kind and the index of a frame alone."""

    def __init__(self, options: DetectorOptions, *, rows: int, cols: int, seed: int) -> None:
        self._options, self._seed = options, seed
        self._flat, self._dark = _fixed_pattern(options, (rows, cols), seed)
        random = np.random.default_rng([seed, 1])
        bad = random.permutation(rows * cols)
        self._response = 1.0 + options.rings * random.uniform(-1.0, 1.0, cols)
        self._dead = bad[: options.dead]
        self._saturated = bad[options.dead : options.dead + options.saturated]
        if options.dtype == "uint16" and options.i0 + options.dark > TOP:
            _LOG.warning("phantom: i0 + dark = %g counts: pixels saturate at 65535", options.i0 + options.dark)

    def expose(self, kind: FrameKind, index: int, *, at: float, integrals: Array | None) -> NDArray[np.generic]:
        """One frame at the share `at` of the scan; `integrals` [rows, cols] are those of a projection, else None."""
        expected = self._dark
        if kind is not FrameKind.DARK:
            seen = 1.0 if integrals is None else np.exp(-integrals) * self._response
            expected = self._dark + self._flat * (1.0 - self._options.drift * at) * seen
        return self._detected(expected, kind, index)

    def _detected(self, expected: Array, kind: FrameKind, index: int) -> NDArray[np.generic]:
        random = np.random.Generator(np.random.SFC64(np.random.SeedSequence([self._seed, kind, index])))
        counts = random.poisson(expected).astype(np.float64) if self._options.noise else expected.copy()
        if self._options.zingers and kind is not FrameKind.DARK:
            hit = random.integers(counts.size, size=random.poisson(self._options.zingers))
            counts.flat[hit] = TOP
        counts.flat[self._dead] = 0.0
        counts.flat[self._saturated] = TOP
        if self._options.dtype == "float32":
            return counts.astype(np.float32)
        return np.minimum(np.rint(counts), TOP).astype(np.uint16)


def _fixed_pattern(options: DetectorOptions, shape: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Flat and dark level of every pixel [rows, cols]: a beam that fades outwards, and pixels of unequal response."""
    rows, cols = shape
    uneven = options.fixed_pattern
    random = np.random.default_rng([seed, 0])
    across = np.linspace(-1.0, 1.0, cols) ** 2
    up = np.linspace(-1.0, 1.0, rows)[:, None] ** 2
    beam = 1.0 - uneven * (across + up) / 2
    flat = options.i0 * beam * (1.0 - uneven * random.random(shape))
    dark = options.dark * (1.0 - uneven * random.random(shape))
    return flat, dark
