"""The sliding window: the latest projections, in the layout of the kernels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import Backend, default
from ministream.state import Slabwise, State


class Window:
    """A ring of line integrals `data` [length, cols, padded slices] float32; the padding stays zero.

    `slot` returns the place of a projection; in a full ring it replaces the oldest one. The held projections are
    always `data[:held]`, in no particular order, with their `angles_rad`. `stamps` [held] changes wherever a
    projection was written, so that users with data per projection can detect new ones; `revision` changes where the
    values of all of them may have.
    """

    def __init__(self, *, length: int, step: int, cols: int, slices: int, backend: Backend | None = None) -> None:
        if not 1 <= step <= length:
            raise ValueError(f"step {step} must be between 1 and the window's length {length}")
        self.length = length
        self.step = step
        self.slices = slices
        self.data = (backend or default()).new_window(length, cols, slices)
        self.held = 0
        self.fresh = 0
        self.revision = 0
        self._angles_rad = np.zeros(length)
        self._stamps = np.zeros(length, dtype=np.int64)
        self._slot_of: dict[int, int] = {}
        self._index_in: list[int] = []
        self._next = 0
        self._written = 0

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        """Angles of the held projections, [held]."""
        return self._angles_rad[: self.held]

    @property
    def stamps(self) -> NDArray[np.int64]:
        """A unique number for each held projection, [held]."""
        return self._stamps[: self.held]

    @property
    def indices(self) -> tuple[int, ...]:
        """Scan indices of the held projections, [held]."""
        return tuple(self._index_in)

    @property
    def due(self) -> bool:
        """An update is due: `step` projections are new since the last one."""
        return self.fresh >= self.step

    @property
    def missed(self) -> int:
        """Projections that have left the window since the last update, before any update used them."""
        return max(0, self.fresh - self.held)

    def slot(self, index: int, angle_rad: float) -> NDArray[np.float32]:
        """Reserve projection `index`'s place [cols, padded slices]; the caller fills the first `slices` of each row.

        A repeated index returns its existing place and does not count as new.
        """
        place = self._slot_of.get(index)
        if place is None:
            place = self._take(index)
            self.fresh += 1
        self._written += 1
        self._angles_rad[place] = angle_rad
        self._stamps[place] = self._written
        row: NDArray[np.float32] = self.data[place]
        return row

    def with_values(self, data: NDArray[np.float32], revision: int) -> Window:
        """The projections now held, with other values: `data` is as large as this window's."""
        other = copy.copy(self)
        other.data, other.revision = data, revision
        return other

    def updated(self) -> None:
        """Reset the count of new projections after an update."""
        self.fresh = 0

    def state(self) -> State:
        """The projections in slot order, and the slot of the next one."""
        return {
            "data": Slabwise(array=self.data[: self.held, :, : self.slices], axis=2),
            "angles_rad": self.angles_rad,
            "stamps": self.stamps,
            "indices": np.array(self._index_in, np.int64),
            "fresh": self.fresh,
            "next": self._next,
            "written": self._written,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the content of a window of the same length; the slices may differ."""
        self._index_in = [int(index) for index in state["indices"]]
        self._slot_of = {index: place for place, index in enumerate(self._index_in)}
        self.held = len(self._index_in)
        self.data[: self.held, :, : self.slices] = state["data"]
        self.angles_rad[:], self.stamps[:] = state["angles_rad"], state["stamps"]
        self.fresh, self._next, self._written = state["fresh"], state["next"], state["written"]

    def _take(self, index: int) -> int:
        place = self._next
        if self.held < self.length:
            self.held += 1
            self._index_in.append(index)
        else:
            del self._slot_of[self._index_in[place]]
            self._index_in[place] = index
        self._slot_of[index] = place
        self._next = (place + 1) % self.length
        return place
