"""Flats and darks of one slab: their sets, and the dark and beam fields for the correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.state import Slabwise, State

DEAD_SHARE = 0.01
"""A pixel whose beam is below this fraction of the median beam is dead."""
HOT_SHARE = 0.5
"""A pixel whose dark exceeds the median dark by this fraction of the median beam is hot."""


class CalibrationFrames:
    """The calibration frames of one kind received since the last projection, for a slab of `shape`.

    `images` are sums of `counts` frames each, recorded at `positions`: one frame each until `condense` is called.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self.images: list[NDArray[Any]] = []
        self.counts: list[int] = []
        self.positions: list[float] = []
        self.superseded = False

    def add(self, raw: NDArray[Any], position: float) -> None:
        """Add one image; the first one after a projection starts a new series."""
        if self.superseded:
            self.images, self.counts, self.positions, self.superseded = [], [], [], False
        self.images.append(np.array(raw))
        self.counts.append(1)
        self.positions.append(position)

    def change(self, correct: Callable[[NDArray[Any]], None]) -> None:
        """Let `correct` change the single images of each set, [images, rows, cols], in place."""
        for place in set(self.positions):
            members = [k for k, at in enumerate(self.positions) if at == place and self.counts[k] == 1]
            if members:
                images = np.stack([self.images[k] for k in members])
                correct(images)
                for k, image in zip(members, images, strict=True):
                    self.images[k] = image

    def sums(self) -> NDArray[np.float64]:
        """Σ over the finite pixels of each image, the mean of its frames, [images]."""
        finite = (np.where(np.isfinite(image), image, 0) for image in self.images)
        totals = np.array([pixels.sum(dtype=np.float64) for pixels in finite], np.float64)
        means: NDArray[np.float64] = totals / np.array(self.counts, np.float64)
        return means

    def uniform(self) -> NDArray[np.bool_]:
        """Whether all pixels of an image are equal, [images]."""
        return np.array([image.min() == image.max() for image in self.images], bool)

    def means(self) -> list[tuple[float, NDArray[np.float64]]]:
        """The mean image of each set, by its position in the acquisition."""
        return [(place, total / count) for place, total, count in self._sets(frozenset())]

    def condense(self, left_out: frozenset[int]) -> None:
        """Reduce to one sum per set, without the images in `left_out`."""
        sets = list(self._sets(left_out))
        self.positions = [place for place, _, _ in sets]
        self.images = [total for _, total, _ in sets]
        self.counts = [count for _, _, count in sets]

    def state(self) -> State:
        """The state for a restart."""
        images = np.stack(self.images) if self.images else np.zeros((0, *self._shape))
        return {
            "images": Slabwise(array=images, axis=1),
            "counts": np.array(self.counts, np.int64),
            "positions": np.array(self.positions, np.float64),
            "superseded": self.superseded,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""
        self.images = list(np.array(state["images"]))
        self.counts, self.positions = list(map(int, state["counts"])), list(map(float, state["positions"]))
        self.superseded = bool(state["superseded"])

    def _sets(self, left_out: frozenset[int]) -> Iterator[tuple[float, NDArray[np.float64], int]]:
        kept = [k for k in range(len(self.images)) if k not in left_out]
        for place in sorted({self.positions[k] for k in kept}):
            members = [k for k in kept if self.positions[k] == place]
            total = np.zeros(self._shape)
            for k in members:
                total += self.images[k]
            yield place, total, sum(self.counts[k] for k in members)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelCauses:
    """Pixels of the slab that are unusable in all frames, by cause."""

    dead: int = 0
    hot: int = 0
    masked: int = 0

    @property
    def total(self) -> int:
        return self.dead + self.hot + self.masked


class Fields:
    """Input of the kernel: the dark, and 1 / (flat - dark), NaN where a pixel is unusable.

    Between two sets of flats the beam is interpolated linearly in the position; outside, the nearest set is used.
    """

    def __init__(self, dark: NDArray[np.float64], beams: list[tuple[float, NDArray[np.float64]]], causes: PixelCauses):
        self.causes = causes
        self.dark = np.nan_to_num(dark, posinf=0.0, neginf=0.0).astype(np.float32)
        self._positions = np.array([position for position, _ in beams])
        self._beams = [beam.astype(np.float32) for _, beam in beams]
        self._gain = np.reciprocal(self._beams[0])
        self._interpolates = len(beams) > 1

    def gain(self, position: float) -> NDArray[np.float32]:
        """1 / (flat - dark) at this position of the acquisition; valid until the next call."""
        if self._interpolates:
            after = int(np.clip(np.searchsorted(self._positions, position), 1, self._positions.size - 1))
            first, last = self._positions[after - 1 : after + 1]
            weight = np.float32(np.clip((position - first) / (last - first), 0, 1))
            np.subtract(self._beams[after], self._beams[after - 1], out=self._gain)
            np.multiply(self._gain, weight, out=self._gain)
            np.add(self._gain, self._beams[after - 1], out=self._gain)
            np.reciprocal(self._gain, out=self._gain)
        return self._gain


def unity(shape: tuple[int, int], mask: NDArray[np.bool_] | None) -> Fields:
    """The fields of data that need no flats and no darks; pixels of `mask` are unusable."""
    ones = np.ones(shape)
    if mask is not None:
        ones[mask] = np.nan
    return Fields(np.zeros(shape), [(0.0, ones)], PixelCauses(masked=_count(mask)))


def measured(
    flats: CalibrationFrames,
    darks: CalibrationFrames,
    mask: NDArray[np.bool_] | None,
) -> Fields:
    """The fields from calibration frames; missing darks count as 0.

    Raises InputError when flats are missing, or when most pixels of the flats are not brighter than the darks.
    """
    sets = flats.means()
    if not sets:
        raise InputError(
            "no flat field came before the first projection. Record flats, or give --set prep.input=transmission if "
            "the data are divided by their flats already, --set prep.input=attenuation if they are line integrals "
            "(-log taken)"
        )
    shape = sets[0][1].shape
    levels = darks.means()
    dark = np.mean([level for _, level in levels], axis=0) if levels else np.zeros(shape)
    beams = [(place, flat - dark) for place, flat in sets]
    _check_brightness(beams, sets, dark)
    return _without_bad_pixels(dark, beams, mask)


def _median(values: NDArray[np.float64]) -> float:
    """The median of the finite values, NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


def _check_brightness(
    beams: list[tuple[float, NDArray[np.float64]]],
    flats: list[tuple[float, NDArray[np.float64]]],
    dark: NDArray[np.float64],
) -> None:
    for (_, beam), (_, flat) in zip(beams, flats, strict=True):
        alive = np.isfinite(beam) & (beam > 0)
        if alive.mean() > 0.5:
            continue
        levels = f"median flat {_median(flat):g}, median dark {_median(dark):g}"
        raise InputError(
            f"flat field is not brighter than the dark field in {np.count_nonzero(~alive)} of {alive.size} pixels "
            f"({levels}). Check that the flats were taken with the beam on and that flats and darks are not swapped "
            "(source.flats and source.darks name their datasets). If the data are corrected already, give --set "
            "prep.input=transmission or --set prep.input=attenuation"
        )


def _without_bad_pixels(
    dark: NDArray[np.float64], beams: list[tuple[float, NDArray[np.float64]]], mask: NDArray[np.bool_] | None
) -> Fields:
    """Mark pixels that are masked, dead in any set of flats, or hot in the darks."""
    masked = np.zeros(dark.shape, bool) if mask is None else mask
    typical = float(np.nanmedian([np.nanmedian(beam[beam > 0]) for _, beam in beams]))
    dead = np.zeros(dark.shape, bool)
    for _, beam in beams:
        dead |= ~(np.isfinite(beam) & (beam > DEAD_SHARE * typical))
    hot = dark - np.nanmedian(dark) > HOT_SHARE * typical
    for _, beam in beams:
        beam[masked | dead | hot] = np.nan
    causes = PixelCauses(masked=_count(masked), dead=_count(dead & ~masked), hot=_count(hot & ~dead & ~masked))
    return Fields(dark, beams, causes)


def _count(pixels: NDArray[np.bool_] | None) -> int:
    return 0 if pixels is None else int(np.count_nonzero(pixels))
