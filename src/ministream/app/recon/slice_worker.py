"""One rank's slices on demand: a thread that filters projections as they arrive and computes the planes asked for.

It reads the window while the job goes on: a projection that is replaced meanwhile is filtered again with the next
snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ministream import log
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.live_pictures import Pixels, plane_of
from ministream.app.recon.parts import Parts
from ministream.recon import backend, filtered
from ministream.recon.geometry import Beams
from ministream.wire.live import Picture

_LOG = log.get(__name__)

# Projections filtered between two looks at whether the job has ended.
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSinogram:
    """The filtered, weighted sinogram of one detector row, [projections, cols], with the angles and the axis."""

    values: Pixels
    angles_rad: NDArray[np.float64]
    axis_col: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceOrder:
    """Rank 0 asks for `pictures` in a numbered round; `rows` are the sinograms of its slices that are known already.

    Projections are filtered as they arrive while `following`.
    """

    number: int = 0
    following: bool = False
    pictures: tuple[Picture, ...] = ()
    rows: Mapping[int, RowSinogram] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceParts:
    """One rank's parts of the pictures of a round, of the window after `update` updates, and sinograms of its rows."""

    number: int
    update: int
    pixels: Mapping[Picture, Pixels]
    rows: Mapping[int, RowSinogram]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What the window held at a moment; its data may have changed since."""

    update: int = 0
    angles_rad: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    stamps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    axis_col: float = 0.0


class SliceWorker:
    """`work` and `follow` hand over the newest order and snapshot, `take` returns what was computed since.

    The thread starts with the first order. Its filtered projections, as large as the window's data, exist while
    rank 0 asks for slices.
    """

    def __init__(self, assignment: Assignment, parts: Parts) -> None:
        self._assignment, self._window = assignment, parts.window
        own = assignment.config.recon
        self._filter = str(own.options.get("filter", "shepp")) if own.kind == "fbp" else "shepp"
        self._changed = threading.Condition()
        self._order, self._snapshot = SliceOrder(), Snapshot()
        self._news = self._stop = False
        self._filtered: backend.Sinogram | None = None
        self._stamps = np.zeros(0, np.int64)
        self._done: tuple[int, set[Picture | int]] = (0, set())
        self._results: list[SliceParts] = []
        self._thread: threading.Thread | None = None

    def work(self, order: SliceOrder, snapshot: Snapshot) -> None:
        """Compute what is new in this order."""
        with self._changed:
            self._order, self._snapshot, self._news = order, snapshot, True
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="slices", daemon=True)
            self._thread.start()

    def follow(self, snapshot: Snapshot) -> None:
        """Filter the new projections."""
        with self._changed:
            self._snapshot, self._news = snapshot, True
            self._changed.notify()

    def take(self) -> list[SliceParts]:
        """What was computed since the last call."""
        with self._changed:
            found, self._results = self._results, []
        return found

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except Exception as error:  # noqa: BLE001 - the job goes on without slices
            _LOG.warning("slices on demand ended, the run continues: %s: %s", type(error).__name__, error)
            _LOG.debug("traceback", exc_info=True)

    def _serve(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._stop)
            self._news = False
            order, snapshot = self._order, self._snapshot
        if self._stop:
            return False
        if not order.following:
            self._filtered = None
            return True
        if snapshot.stamps.size:
            self._filter_new(snapshot)
            self._compute(order, snapshot)
        return True

    def _filter_new(self, snapshot: Snapshot) -> None:
        if self._filtered is None:
            self._filtered = backend.default().new_sinogram(self._window.data)
            self._stamps = np.zeros(self._window.length, np.int64)
        held = snapshot.stamps.size
        changed = np.flatnonzero(self._stamps[:held] != snapshot.stamps)
        response = filtered.ramp(self._window.data.shape[1], self._filter)
        for first in range(0, changed.size, _AT_ONCE):
            if self._stop:
                return
            slots = changed[first : first + _AT_ONCE]
            backend.default().filter(self._filtered, self._window.data, slots, response)
            self._stamps[slots] = snapshot.stamps[slots]

    def _compute(self, order: SliceOrder, snapshot: Snapshot) -> None:
        if self._done[0] != order.number:
            self._done = order.number, set()
        slab, done = self._assignment.slab, self._done[1]
        for picture in order.pictures:
            if self._stop or self._order.number != order.number:
                return
            row = picture.index
            if picture.kind == "z" and row not in order.rows:
                if slab.first <= row < slab.stop and row not in done:
                    done.add(row)
                    self._give(order, snapshot, rows={row: self._sinogram(row - slab.first, snapshot)})
            elif picture not in done:
                done.add(picture)
                flat = picture.kind == "z"
                found = self._horizontal(picture, order.rows[row]) if flat else self._vertical(picture, snapshot)
                self._give(order, snapshot, pixels={picture: found})

    def _give(
        self,
        order: SliceOrder,
        snapshot: Snapshot,
        *,
        pixels: Mapping[Picture, Pixels] | None = None,
        rows: Mapping[int, RowSinogram] | None = None,
    ) -> None:
        found = SliceParts(number=order.number, update=snapshot.update, pixels=pixels or {}, rows=rows or {})
        with self._changed:
            self._results.append(found)

    def _vertical(self, picture: Picture, snapshot: Snapshot) -> Pixels:
        slab, plane = self._assignment.slab, plane_of(picture, self._assignment)
        near = plane.rows_near(slab.first, slab.stop)
        beams, weights = Beams.at(snapshot.angles_rad, snapshot.axis_col), _weights(snapshot.angles_rad)
        assert self._filtered is not None
        mine = plane.part(near.start, near.stop)
        return backend.default().slab_plane(self._filtered, beams, weights, mine, slab.first, slab.rows)

    def _sinogram(self, row: int, snapshot: Snapshot) -> RowSinogram:
        held = snapshot.stamps.size
        assert self._filtered is not None
        values = backend.default().host(self._filtered)[:held, :, row] * _weights(snapshot.angles_rad)[:, None]
        return RowSinogram(values=values, angles_rad=snapshot.angles_rad, axis_col=snapshot.axis_col)

    def _horizontal(self, picture: Picture, row: RowSinogram) -> Pixels:
        plane = plane_of(picture, self._assignment)
        first, stop, _ = share_of(plane.rows, self._assignment).indices(plane.rows)
        mine = plane.part(first, stop)
        return backend.default().row_plane(row.values, Beams.at(row.angles_rad, row.axis_col), mine)


def _weights(angles_rad: NDArray[np.float64]) -> Pixels:
    return filtered.shares_rad(angles_rad).astype(np.float32)


def share_of(rows: int, assignment: Assignment, rank: int | None = None) -> slice:
    """The rows of a horizontal plane that a rank computes, by default this one."""
    mine, ranks = assignment.rank if rank is None else rank, len(assignment.slabs)
    return slice(rows * mine // ranks, rows * (mine + 1) // ranks)
