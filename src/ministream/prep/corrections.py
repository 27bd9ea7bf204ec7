"""Raw counts to line integrals, slab by slab."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ministream import config
from ministream.model import FrameKind
from ministream.prep import chain, fields, kernels
from ministream.prep.kernels import MIN_TRANSMISSION
from ministream.prep.steps import SlabFacts
from ministream.state import State, Value

MAX_TRANSMISSION = 1e4
"""A pixel brighter than its flat by this factor is a fill value and counts as invalid."""

SAMPLED_SHARE = 16
MOST_SAMPLED = 8
LEAST_SAMPLED = 4


class Mended(NamedTuple):
    """Pixels of one projection of the slab that were mended, by cause.

    `starved`: no photon counted, set to MIN_TRANSMISSION. All others are interpolated from the nearest valid neighbours
    in their row: `dead` (no beam), `hot`, `masked` by the user, `invalid` (NaN, infinite or out of range); or replaced
    by an optional correction (`zinger`).
    """

    starved: int = 0
    dead: int = 0
    hot: int = 0
    masked: int = 0
    invalid: int = 0
    zinger: int = 0

    @property
    def total(self) -> int:
        """The sum over all causes."""
        return sum(self)

    def plus(self, other: Mended) -> Mended:
        """The sum of both, cause by cause."""
        return Mended(*map(operator.add, self, other))


class Corrector:
    """Turns raw frames [rows, cols] of one slab into line integrals −log((p − d) / (f − d)).

    f and d are the means of the flats and darks seen so far, f interpolated between sets from different positions of
    the acquisition; a flat (dark) after a projection starts a new series. Without darks d is 0. With `flat_dark` off
    the pixels are transmissions; with `minus_log` also off they are line integrals. Pixels of
    `mask` [rows, cols] are not used. The projection steps of `options` are applied before the logarithm. The kernel for
    frames of `dtype` is compiled at once, that of others when they come.

    `measures` [sampled rows, MEASURES] are those of the last projection; `sampled` are these rows. `blank_rows` of the
    last projection hold one value that is not the beam's.
    """

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        options: config.PrepSection,
        mask: NDArray[np.bool_] | None = None,
        dtype: str = "uint16",
        pixel_size_um: float | None = None,
        energy_kev: float | None = None,
    ) -> None:
        kernels.warm_up(np.dtype(dtype))
        self._options, self._shape, self._mask = options, (rows, cols), mask
        self._frames = {kind: fields.CalibrationFrames((rows, cols)) for kind in (FrameKind.FLAT, FrameKind.DARK)}
        self._lines = np.zeros((kernels.BLOCK, cols), np.float32)
        self._fields: fields.Fields | None = None
        facts = SlabFacts(rows=rows, cols=cols, pixel_size_um=pixel_size_um, energy_kev=energy_kev)
        self._steps = chain.projection_steps(options, facts)
        self._transmissions = np.zeros((rows, cols), np.float32) if self._steps else None
        if self._steps:
            kernels.warm_up(np.dtype(np.float32))  # the second pass reads what the steps leave
            kernels.warm_up_steps(np.dtype(dtype))
        self.blank_rows = 0
        count = min(rows, MOST_SAMPLED, max(LEAST_SAMPLED, rows // SAMPLED_SHARE))
        self.sample(np.arange(count) * (rows // count))

    def sample(self, rows: NDArray[np.int64]) -> None:
        """Measure these rows of the slab from the next projection on, in ascending order."""
        self.sampled = rows
        self.measures = np.zeros((rows.size, len(kernels.MEASURES)), np.float32)
        self._places = np.full(self._shape[0], -1, np.int64)
        self._places[rows] = np.arange(rows.size)

    def add(self, kind: FrameKind, raw: NDArray[Any], position: float = 0.0) -> None:
        """Add a flat or a dark [rows, cols], recorded after `position` projections."""
        if self._fields is not None:
            for frames in self._frames.values():
                frames.superseded = True
            self._fields = None
        self._frames[kind].add(raw, position)

    @property
    def settled(self) -> bool:
        """Whether the fields are computed from all calibration frames so far; a further frame resets this."""
        return self._fields is not None

    def calibration(self, kind: FrameKind) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        """For each flat (dark) so far: the sum of the slab's pixels, whether all are equal, and the position."""
        frames = self._frames[kind]
        return frames.sums(), frames.uniform(), np.array(frames.positions, np.float64)

    def settle(self, left_out: Mapping[FrameKind, frozenset[int]] | None = None) -> fields.Fields:
        """Compute the fields from the calibration frames so far, except those in `left_out`.

        Raises InputError when flats are missing, or when most pixels of the flats are not brighter than the darks.
        """
        for step in self._steps:
            self._frames[FrameKind.FLAT].change(step.clean_flats)
        for kind, frames in self._frames.items():
            frames.condense((left_out or {}).get(kind, frozenset()))
        if self._options.flat_dark:
            flats, darks = self._frames[FrameKind.FLAT], self._frames[FrameKind.DARK]
            self._fields = fields.measured(flats, darks, self._mask)
        else:
            self._fields = fields.unity(self._shape, self._mask)
        return self._fields

    def correct(self, raw: NDArray[Any], out: NDArray[np.float32], position: float = 0.0) -> Mended:
        """Write the line integrals of raw [rows, cols] to out[:, :rows]; return the numbers of mended pixels.

        `position` is the projection's place in the acquisition. Raises InputError as `settle` does.
        """
        current = self._fields or self.settle()
        kernels.warm_up(raw.dtype)
        if self._steps:
            kernels.warm_up_steps(raw.dtype)
        top = np.float32(np.iinfo(raw.dtype).max if raw.dtype.kind in "ui" else np.inf)
        raw = kernels.read_only(raw.astype(kernels.read_as(raw.dtype), copy=False))
        minus_log = self._options.minus_log
        if self._transmissions is None:
            starved, lost, self.blank_rows = self._through(
                raw, current.dark, current.gain(position), minus_log, top, out
            )
            return self._mended(current.causes, starved, lost)
        starved, lost, self.blank_rows = self._through(
            raw, current.dark, current.gain(position), False, top, self._transmissions.T
        )
        saturated = self.measures[:, kernels.MEASURES.index("saturated")].copy()
        zingers = sum(step.apply(self._transmissions) for step in self._steps)
        nothing, ones = np.zeros_like(self._transmissions), np.ones_like(self._transmissions)
        self._through(kernels.read_only(self._transmissions), nothing, ones, minus_log, np.float32(np.inf), out)
        self.measures[:, kernels.MEASURES.index("saturated")] = saturated
        return self._mended(current.causes, starved, lost)._replace(zinger=zingers)

    def _through(
        self,
        raw: NDArray[Any],
        dark: NDArray[np.float32],
        gain: NDArray[np.float32],
        minus_log: bool,
        top: np.float32,
        out: NDArray[np.float32],
    ) -> tuple[int, int, int]:
        """out = (raw - dark) · gain, or its −log; returns the numbers of starved and lost pixels, and of blank rows."""
        counted = self._options.minus_log
        smallest, repair = (MIN_TRANSMISSION, MIN_TRANSMISSION) if counted else (-np.inf, 0.0)
        largest = MAX_TRANSMISSION if counted else np.finfo(np.float32).max
        starved, lost, blank = kernels.correct(
            raw, dark, gain, minus_log, np.float32(smallest), np.float32(largest), np.float32(repair), top,
            self._places, self._lines, out, self.measures,
        )  # fmt: skip
        return starved, lost, blank

    def _mended(self, causes: fields.PixelCauses, starved: int, lost: int) -> Mended:
        return Mended(
            starved=starved,
            dead=causes.dead,
            hot=causes.hot,
            masked=causes.masked,
            invalid=max(0, lost - causes.total),
        )

    def state(self) -> State:
        """The calibration frames so far; once they are settled, one sum per set."""
        found: dict[str, Value] = {"settled": self.settled}
        for kind, frames in self._frames.items():
            found |= {f"{kind.name.lower()}_{name}": value for name, value in frames.state().items()}
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a corrector with the same options, for this slab. Raises InputError as `settle` does."""
        for kind, frames in self._frames.items():
            prefix = f"{kind.name.lower()}_"
            mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            frames.restore(mine)
        self._fields = None
        if state["settled"]:
            self.settle()
