"""Row and column sums of the window's projection matrix, updated as projections enter and leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import Backend, default
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.window import Window
from ministream.state import Shared, State

_NEGLIGIBLE = 1e-3
"""Sums below this (a pixel's width is 1) count as zero coverage."""


class Sharing(Protocol):
    """Ranks that hold the same projections: weights do not depend on the slab, so each computes a part of them."""

    def part(self, count: int) -> slice:
        """The rows of this rank among `count` rows."""

    def whole(self, mine: NDArray[np.float32], count: int) -> Callable[[], NDArray[np.float32]]:
        """Start to gather all `count` rows from the parts of all ranks; calling the result waits; collective."""


class Alone:
    """A single rank, which computes everything."""

    def part(self, count: int) -> slice:
        """All rows."""
        return slice(0, count)

    def whole(self, mine: NDArray[np.float32], count: int) -> Callable[[], NDArray[np.float32]]:
        """The rows of this rank, immediately."""
        return lambda: mine


class Weights:
    """SIRT's R and C: the inverse row sums [length, cols] and the inverse column sums [n, n] of the window's A.

    `support` [n, n] limits the image: pixels outside are excluded from the row sums and have column weight 0.
    A sum that is zero has weight zero. Updates are collective over `sharing`; results do not depend on the number of
    ranks, since each value is computed by one rank. The gather is pending until the weights are read.
    """

    def __init__(
        self,
        geometry: Geometry,
        length: int,
        support: NDArray[np.bool_] | None = None,
        sharing: Sharing | None = None,
        backend: Backend | None = None,
    ) -> None:
        n = geometry.n
        self._backend = backend or default()
        self._geometry = geometry
        self._support = np.ones((n, n), bool) if support is None else support
        self._sharing = sharing or Alone()
        self._part = self._sharing.part(n)
        self._column_sums = np.zeros((self._part.stop - self._part.start, n))
        self._stamps = np.zeros(length, dtype=np.int64)
        self._angles_rad = np.zeros(length)
        self._rows = np.zeros((length, geometry.cols), np.float32)
        self._columns = np.zeros((n, n), np.float32)
        self._settle: Callable[[], None] | None = None
        self.waited_s = 0.0
        """Seconds spent waiting for gathers so far."""

    @property
    def rows(self) -> NDArray[np.float32]:
        """R, [length, cols]."""
        self.settle()
        return self._rows

    @property
    def columns(self) -> NDArray[np.float32]:
        """C, [n, n]."""
        self.settle()
        return self._columns

    def settle(self) -> None:
        """Wait for the pending gather."""
        if self._settle is not None:
            began = time.perf_counter()
            self._settle()
            self._settle = None
            self.waited_s += time.perf_counter() - began

    def update(self, window: Window) -> None:
        """Add the new projections of the window and subtract those that have left."""
        self.settle()
        stamps = np.zeros_like(self._stamps)
        stamps[: window.held] = window.stamps
        changed = np.flatnonzero(stamps != self._stamps)
        if not changed.size:
            return
        gone = changed[self._stamps[changed] != 0]
        if changed.size == window.held:
            self._column_sums[:] = 0  # all projections are new: discard accumulated rounding errors
        elif gone.size:
            self._column_sums -= self._seen(self._beams(gone))
        self._angles_rad[: window.held] = window.angles_rad
        self._stamps = stamps
        new = self._beams(changed)
        self._column_sums += self._seen(new)
        self._begin(new)

    def _begin(self, new: Beams) -> None:
        """Start to compute the weights of the sums and of the projections `new`."""
        rows, columns = self._row_weights(new), self._column_weights(self._column_sums)

        def settle() -> None:
            self._rows[new.slots] = rows()
            self._columns = columns()

        self._settle = settle

    def state(self) -> State:
        """The sums with their rounding errors, and the projections in them; the rest is derived."""
        self.settle()
        total = self._geometry.n
        return {
            "column_sums": Shared(array=self._column_sums, part=self._part, total=total),
            "angles_rad": self._angles_rad,
            "stamps": self._stamps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of weights of the same geometry and length; collective over `sharing`."""
        self.settle()
        self._column_sums[:] = state["column_sums"]
        self._angles_rad[:], self._stamps[:] = state["angles_rad"], state["stamps"]
        self._begin(self._beams(np.flatnonzero(self._stamps)))

    def columns_of(self, beams: Beams) -> NDArray[np.float32]:
        """The inverse column sums of the projections of `beams` alone, [n, n]."""
        return self._column_weights(self._seen(beams))()

    def _seen(self, beams: Beams) -> NDArray[np.float64]:
        """Column sums of these projections, this rank's rows of them."""
        return self._backend.column_sums(beams, self._geometry.n, self._geometry.cols, self._part)

    def _column_weights(self, mine: NDArray[np.float64]) -> Callable[[], NDArray[np.float32]]:
        return self._sharing.whole(_inverse(mine) * self._support[self._part], self._geometry.n)

    def _row_weights(self, beams: Beams) -> Callable[[], NDArray[np.float32]]:
        count = beams.slots.size
        mine = beams._replace(slots=beams.slots[self._sharing.part(count)])
        return self._sharing.whole(_inverse(self._backend.row_sums(mine, self._support, self._geometry.cols)), count)

    def _beams(self, slots: NDArray[np.int64]) -> Beams:
        return Beams.at(self._angles_rad, self._geometry.axis_col, slots)


def _inverse(sums: NDArray[np.floating]) -> NDArray[np.float32]:
    """1 / sums, and 0 where a sum is zero."""
    seen = sums > _NEGLIGIBLE
    result = np.divide(1.0, sums, out=np.zeros(sums.shape), where=seen)
    single: NDArray[np.float32] = result.astype(np.float32)
    return single
