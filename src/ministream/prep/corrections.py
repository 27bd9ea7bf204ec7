"""Flat-field and dark-field correction of one slab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream import config
from ministream.errors import InputError
from ministream.model import FrameKind
from ministream.prep import kernels
from ministream.state import Slabwise, State, Value

MIN_TRANSMISSION = 1e-5
"""Where no photon was counted (p ≤ d) the sample counts as letting this much through: a line integral of 11.5."""


class Corrector:
    """Turns raw frames [rows, cols] of one slab into line integrals −log((p − d) / (f − d)).

    f and d are the means of the flats and darks seen so far; a flat (dark) that comes after a projection starts a new
    set of flats (darks). Without darks d is 0. With `flat_dark` off the pixels count as transmissions, and with
    `minus_log` off as well they are line integrals already.
    """

    def __init__(self, *, rows: int, cols: int, options: config.PrepSection) -> None:
        kernels.warm_up()
        self._options = options
        self._shape = (rows, cols)
        self._sets = {kind: _Mean((rows, cols)) for kind in (FrameKind.FLAT, FrameKind.DARK)}
        self._lines = np.zeros((kernels.BLOCK, cols), np.float32)
        self._fields: _Fields | None = None

    def add(self, kind: FrameKind, raw: NDArray[Any]) -> None:
        """Take in a flat or a dark [rows, cols]."""
        if self._fields is not None:
            for mean in self._sets.values():
                mean.complete = True
            self._fields = None
        self._sets[kind].add(raw)

    @property
    def settled(self) -> bool:
        """The calibration frames so far have been made into fields; another one that comes undoes this."""
        return self._fields is not None

    def settle(self) -> _Fields:
        """Make the fields from the calibration frames so far.

        Raises InputError when the flats are missing, or for most pixels not brighter than the darks.
        """
        self._fields = self._make_fields()
        return self._fields

    def correct(self, raw: NDArray[Any], out: NDArray[np.float32]) -> int:
        """Write the line integrals of raw [rows, cols] to out[:, :rows]; return how many pixels were repaired.

        Repaired means: no photon counted (set to MIN_TRANSMISSION), or a dead pixel, whose flat is not brighter than
        its dark (interpolated along the row).

        Raises InputError as `settle` does.
        """
        fields = self._fields or self.settle()
        if raw.dtype not in kernels.DTYPES:
            raw = raw.astype(np.float32)
        minus_log = self._options.minus_log
        smallest, repair = (MIN_TRANSMISSION, MIN_TRANSMISSION) if minus_log else (-np.inf, 0.0)
        repaired: int = kernels.correct(
            kernels.read_only(raw), fields.dark, fields.gain, fields.left, fields.right,
            minus_log, np.float32(smallest), np.float32(repair), self._lines, out,
        )  # fmt: skip
        return repaired

    def state(self) -> State:
        """The calibration frames so far, as sums and counts."""
        found: dict[str, Value] = {"settled": self.settled}
        for kind, mean in self._sets.items():
            name = kind.name.lower()
            found[f"{name}_sum"] = Slabwise(array=mean.sum, axis=0)
            found[f"{name}_count"], found[f"{name}_complete"] = mean.count, mean.complete
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what a corrector of the same options knew, for this slab. Raises InputError as `settle` does."""
        for kind, mean in self._sets.items():
            name = kind.name.lower()
            mean.sum[:] = state[f"{name}_sum"]
            mean.count, mean.complete = state[f"{name}_count"], state[f"{name}_complete"]
        self._fields = self._make_fields() if state["settled"] else None

    def _make_fields(self) -> _Fields:
        if not self._options.flat_dark:
            return _Fields(np.zeros(self._shape), np.ones(self._shape))
        flats, darks = self._sets[FrameKind.FLAT], self._sets[FrameKind.DARK]
        if not flats.count:
            raise InputError(
                "no flat field came before the first projection: record flats, or set flat_dark = false in [prep] "
                "if the data are transmissions already"
            )
        dark = darks.value if darks.count else np.zeros(self._shape)
        beam = flats.value - dark
        alive = np.isfinite(beam) & (beam > 0)
        if alive.mean() <= 0.5:
            raise InputError(
                f"flat field is not brighter than the dark field in {np.count_nonzero(~alive)} of {alive.size} pixels: "
                "check that flats were taken with beam and are not the darks, or set flat_dark = false in [prep]"
            )
        return _Fields(dark, np.divide(1.0, beam, out=np.zeros(self._shape), where=alive))


class _Mean:
    """Running mean of one set of calibration frames."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.sum = np.zeros(shape)
        self.count = 0
        self.complete = False

    @property
    def value(self) -> NDArray[np.float64]:
        return self.sum / self.count

    def add(self, raw: NDArray[Any]) -> None:
        if self.complete:
            self.sum[:] = 0
            self.count = 0
            self.complete = False
        self.sum += raw
        self.count += 1


class _Fields:
    """What the kernel reads: dark, 1 / (flat − dark) or 0 for a dead pixel, each pixel's nearest sound neighbours."""

    def __init__(self, dark: NDArray[np.float64], gain: NDArray[np.float64]) -> None:
        self.dark = np.nan_to_num(dark).astype(np.float32)
        self.gain = gain.astype(np.float32)
        sound = self.gain != 0
        cols = np.arange(sound.shape[1], dtype=np.int32)
        self.left = np.maximum.accumulate(np.where(sound, cols, -1), axis=1).astype(np.int32)
        none = sound.shape[1]
        following = np.minimum.accumulate(np.where(sound, cols, none)[:, ::-1], axis=1)[:, ::-1]
        self.right = np.where(following == none, -1, following).astype(np.int32)
