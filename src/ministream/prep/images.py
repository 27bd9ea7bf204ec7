"""Corrections of whole projections, with the order and definitions of the distributor of aps-mini-apps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.model import Frame, FrameKind
from ministream.prep.stripes import StripeFilter

SMALLEST_BEAM = np.float32(1e-6)
"""Flat minus dark is at least this much, as in TomoPy's `normalize`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Which corrections are applied, in this order.

    `normalize`: (p - d) / max(f - d, 1e-6), with f and d the means of flats and darks. `remove_stripes`: number of
    projections filtered together, 0 to disable. `minus_log`: -log(p). `remove_invalids`: NaN, infinite and negative
    values become 0.
    """

    normalize: bool = False
    remove_stripes: int = 0
    minus_log: bool = False
    remove_invalids: bool = False


Corrected = tuple[Frame, NDArray[np.float32]]
"""A projection as received, and its corrected pixels as a new array."""


class ImageCorrector:
    """Corrects projections [rows, cols] with the latest set of flats and darks; index 0 starts a new set.

    Raises ConfigError for stripe removal without the extra `stripes`.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._sets: dict[FrameKind, list[NDArray[np.float32]]] = {FrameKind.FLAT: [], FrameKind.DARK: []}
        self._fields: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._stripes = StripeFilter() if steps.remove_stripes else None
        self._waiting: list[Corrected] = []

    def add(self, frame: Frame) -> None:
        """Add a flat or a dark."""
        images = self._sets[frame.kind]
        if frame.index == 0:
            images.clear()
        images.append(frame.pixels.astype(np.float32))
        self._fields = None

    def correct(self, frame: Frame) -> Sequence[Corrected]:
        """Add a projection; returns the corrected ones: this one, or with stripe removal a whole group or none.

        Raises InputError when normalisation is enabled and no flat was received.
        """
        pixels = frame.pixels.astype(np.float32)
        if self._steps.normalize:
            dark, beam = self._dark_and_beam()
            np.subtract(pixels, dark, out=pixels)
            np.divide(pixels, beam, out=pixels)
        self._waiting.append((frame, pixels))
        return self.rest() if len(self._waiting) >= self._steps.remove_stripes else ()

    def rest(self) -> Sequence[Corrected]:
        """Correct the last, incomplete group of projections at the end of the scan."""
        waiting, self._waiting = self._waiting, []
        if self._stripes is not None and waiting:
            cleaned = self._stripes.clean([pixels for _, pixels in waiting])
            waiting = [(frame, pixels) for (frame, _), pixels in zip(waiting, cleaned, strict=True)]
        return [(frame, self._finished(pixels)) for frame, pixels in waiting]

    def _finished(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._steps.minus_log:
            with np.errstate(divide="ignore", invalid="ignore"):
                np.negative(np.log(pixels, out=pixels), out=pixels)
        if self._steps.remove_invalids:
            pixels[~(np.isfinite(pixels) & (pixels > 0))] = 0
        return pixels

    def _dark_and_beam(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._fields is None:
            flats, darks = self._sets[FrameKind.FLAT], self._sets[FrameKind.DARK]
            if not flats:
                raise InputError("--normalize: no flat came before the first projection")
            flat = _mean(flats)
            dark = _mean(darks) if darks else np.zeros_like(flat)
            self._fields = dark, np.maximum(flat - dark, SMALLEST_BEAM)
        return self._fields


def _mean(images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.asarray(images).mean(axis=0, dtype=np.float32)
    return mean
