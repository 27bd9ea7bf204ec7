"""Slices on demand over all ranks: rank 0 asks in rounds, every rank computes its part beside the update loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

from ministream.app.recon.assignment import Assignment
from ministream.app.recon.live_pictures import Pixels, added, plane_of, step_of
from ministream.app.recon.parts import Parts
from ministream.app.recon.slice_worker import SliceOrder, SliceParts, SliceWorker, Snapshot, share_of
from ministream.parallel.mailbox import Mailbox
from ministream.parallel.mpi import Comm
from ministream.recon.planes import Plane
from ministream.wire.live import Picture, Shape

REFRESH_S = 2.0
"""Slices that viewers keep asking for are computed again so often at most; new ones at once."""


class LiveSlices:
    """One rank's part; nothing waits for a viewer, for another rank, or for the computation.

    A slice z needs one detector row: the rank that owns it sends its filtered sinogram to rank 0, which sends it to
    all, and each computes a part. Of the other planes every rank computes what its rows give, and rank 0 adds.
    """

    def __init__(self, comm: Comm, assignment: Assignment, parts: Parts) -> None:
        self._mailbox, self._window, self._axis = Mailbox(comm), parts.window, parts.axis
        self._worker = SliceWorker(assignment, parts)
        self.rounds = _Rounds(assignment) if comm.rank == 0 else None
        self._order, self._unsent = SliceOrder(), list[SliceParts]()
        self._update, self._seen = 0, 0

    def want(self, pictures: Sequence[Picture]) -> None:
        """On rank 0: the slices that viewers ask for."""
        if self.rounds is not None:
            self.rounds.want(tuple(pictures))

    def updated(self, update: int) -> None:
        """The image was updated: the slices change too."""
        self._update = update
        if self.rounds is not None:
            self.rounds.stale = True

    def poll(self) -> dict[Shape, Pixels]:
        """Exchange orders and parts; returns, on rank 0, the pictures that are complete."""
        found = dict[Shape, Pixels]()
        for rank, message in self._mailbox.poll():
            if self.rounds is not None:
                found |= self.rounds.arrived(rank, message)
            else:
                self._work(message)
        if self.rounds is not None and (order := self.rounds.order(time.monotonic())) is not None:
            self._mailbox.post(order)
            self._work(order)
        self._follow()
        for parts in self._worker.take():
            if self.rounds is not None:
                found |= self.rounds.arrived(0, [parts])
            else:
                self._unsent.append(parts)
        if self._unsent and not self._mailbox.busy:
            self._mailbox.post([parts for parts in self._unsent if parts.number == self._order.number])
            self._unsent.clear()
        return found

    def close(self) -> None:
        """End the computation."""
        self._worker.close()

    @property
    def idle(self) -> bool:
        """Nothing is under way: on rank 0 a round, elsewhere the wish for slices."""
        if self.rounds is None:
            return not self._order.following
        return self.rounds.idle and not self._mailbox.busy

    def end(self) -> None:
        """On rank 0: compute the last slices now; after them no more are asked for."""
        if self.rounds is not None:
            self.rounds.end()

    def _work(self, order: SliceOrder) -> None:
        if order.following or self._order.following:
            self._worker.work(order, self._snapshot())
        self._order = order

    def _follow(self) -> None:
        newest = int(self._window.stamps.max(initial=0))
        if self._order.following and newest != self._seen:
            self._worker.follow(self._snapshot())

    def _snapshot(self) -> Snapshot:
        window = self._window
        self._seen = int(window.stamps.max(initial=0))
        return Snapshot(
            update=self._update,
            angles_rad=window.angles_rad.copy(),
            stamps=window.stamps.copy(),
            axis_col=self._axis.col,
        )


class _Rounds:
    """Rank 0's account of what is asked for, what is under way, and what has arrived."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment, self._ranks = assignment, len(assignment.slabs)
        self._wanted: tuple[Picture, ...] = ()
        self._shown: set[Picture] = set()
        self._order = SliceOrder()
        self._open: dict[Picture, dict[int, tuple[int, Pixels]]] = {}
        self._began_s = -math.inf
        self._changed = self._more_rows = self._ending = False
        self.stale = False

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not (self._open or self._changed or self._order.following)

    def want(self, pictures: tuple[Picture, ...]) -> None:
        """What to compute from now on."""
        if pictures != self._wanted and not self._ending:
            self._wanted, self._changed = pictures, True
            self._shown &= set(pictures)

    def end(self) -> None:
        """Compute everything once more, then nothing."""
        self._ending, self._changed = True, bool(self._wanted)

    def order(self, now: float) -> SliceOrder | None:
        """What the ranks are to do, where that has changed."""
        due = self.stale and bool(self._wanted) and not self._open and now - self._began_s >= REFRESH_S
        if self._changed or due:
            # at the end also what a round that was under way completes meanwhile
            self._begin(everything=due or self._ending, now=now)
        elif self._ending and not self._open and self._order.following:
            self._order = SliceOrder(number=self._order.number + 1)
        elif not self._more_rows:
            return None
        self._more_rows = False
        return self._order

    def arrived(self, rank: int, found: Sequence[SliceParts]) -> dict[Shape, Pixels]:
        """Add parts of a rank; returns the pictures that are complete."""
        complete = dict[Shape, Pixels]()
        for parts in found:
            if parts.number != self._order.number:
                continue
            if parts.rows:
                self._order = dataclasses.replace(self._order, rows={**self._order.rows, **parts.rows})
                self._more_rows = True
            for picture, pixels in parts.pixels.items():
                held = self._open[picture]
                held[rank] = parts.update, pixels
                if len(held) == self._ranks:
                    complete[self._shape(picture, held)] = self._joined(picture, held)
                    del self._open[picture]
                    self._shown.add(picture)
        return complete

    def _begin(self, *, everything: bool, now: float) -> None:
        pictures = tuple(picture for picture in self._wanted if everything or picture not in self._shown)
        self.stale, self._changed, self._began_s = self.stale and not everything, False, now
        self._open = {picture: {} for picture in pictures}
        self._order = SliceOrder(number=self._order.number + 1, following=bool(self._wanted), pictures=pictures)

    def _shape(self, picture: Picture, held: Mapping[int, tuple[int, Pixels]]) -> Shape:
        plane = plane_of(picture, self._assignment)
        update = min(update for update, _ in held.values())
        step = step_of(picture, self._assignment)
        return Shape(picture=picture, update=update, rows=plane.rows, cols=plane.cols, step=step)

    def _joined(self, picture: Picture, held: Mapping[int, tuple[int, Pixels]]) -> Pixels:
        plane = plane_of(picture, self._assignment)
        return added(plane, ((self._first(picture, plane, rank), pixels) for rank, (_, pixels) in held.items()))

    def _first(self, picture: Picture, plane: Plane, rank: int) -> int:
        """The row of a plane with which a rank's part begins."""
        if picture.kind == "z":
            return int(share_of(plane.rows, self._assignment, rank).start)
        slab = self._assignment.slabs[rank]
        return plane.rows_near(slab.first, slab.stop).start
