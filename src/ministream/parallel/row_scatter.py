"""Distribute every frame's detector rows to the ranks that own them, overlapped with computation.

Frames travel in batches: one small broadcast says what comes, then one scatter per frame takes the rows
straight from the receive buffer, because a slab of a C-ordered frame is contiguous. All operations are
non-blocking; whoever computes calls `poll` now and then so that MPI moves on.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.model import Frame, FrameKind, Scan, Slab
from ministream.parallel.mpi import MPI, Comm, Request, row_type, wait_until

# A batch that is on its way moves only while somebody polls, and a nap is as long as a transfer. Where one batch
# follows another, the next is announced within the time of a nap.
EAGER_S = 2e-3
NEXT_S = 2e-4

_RECORD = np.dtype([("kind", "u1"), ("index", "i8"), ("angle_rad", "f8"), ("acquired_s", "f8"), ("position", "f8")])


class Op(enum.IntEnum):
    """The meaning of a batch."""

    FRAMES = 1
    END = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SlabFrame:
    """One frame as a rank sees it: `pixels` [slab rows, cols] in the scan's dtype, valid until the next `poll`."""

    kind: FrameKind
    index: int
    angle_rad: float
    acquired_s: float
    position: float
    pixels: NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """Seconds that a rank waited for a batch although rank 0 had frames.

    `idle_s`: rank 0 was not there to deal them. `scatter_s`: the rows were on their way. The rest of the wait is for
    frames; what travels while a rank computes is in neither.
    """

    idle_s: float = 0.0
    scatter_s: float = 0.0


Feed = Callable[[], Sequence[Frame] | None]


def _nothing() -> None:
    """Default action of a rank while it waits."""


class RowScatter:
    """One rank's end of the distribution; every rank makes one, in the same order.

    `feed`, on rank 0, returns the frames that are ready (at most `batch`, maybe none) without waiting, and
    None once, when no more will come. Beyond the frames that `feed` hands out, rank 0 holds no pixels
    and copies none; the others hold `batch` frames of their own rows.
    """

    def __init__(self, comm: Comm, scan: Scan, slabs: Sequence[Slab], batch: int, feed: Feed | None) -> None:
        self._comm = comm.dup()
        self._feed = feed
        self._slab = slabs[comm.rank]
        self._counts = [slab.rows for slab in slabs]
        self._starts = [slab.first for slab in slabs]
        dtype = np.dtype(scan.dtype)
        self._row = row_type(scan.cols * dtype.itemsize)
        self._staging = np.empty((0 if feed else batch, self._slab.rows, scan.cols), dtype)
        self._control = np.zeros(
            1, [("op", "i8"), ("count", "i8"), ("starved_s", "f8"), ("records", _RECORD, (batch,))]
        )
        self._frames: Sequence[Frame] = ()
        self._announced: Request | None = None
        self._scatters: list[Request] | None = None
        self._hungry_since: float | None = None
        self._announced_at = 0.0
        self.waits = Waits()
        self.ended = False
        self.bytes_scattered = 0

    def poll(self) -> bool:
        """Progress the next batch without waiting; True when it is complete on this rank."""
        if self.ended:
            return True
        if self._announced is None:
            self._announce()
        if self._announced is None:
            return False
        # Rank 0 knows what it announced; the others must read it first.
        if self._scatters is None and (self._feed is not None or self._announced.Test()):
            self._announced_at = time.perf_counter()
            self._scatters = [self._scatter(k) for k in range(self._count)]
        return self._scatters is not None and Request.Testall([self._announced, *self._scatters])

    def take(self, meanwhile: Callable[[], None] = _nothing) -> list[SlabFrame] | None:
        """Wait, with pauses, for the next batch; None when the stream has ended. `meanwhile` is called now and then.

        `waits` then says what this wait was for.
        """
        began = self._hungry_since = time.perf_counter()
        wait_until(lambda: self._under_way(meanwhile), eager_s=NEXT_S)
        wait_until(self.poll, eager_s=EAGER_S)
        announced = max(began, self._announced_at)
        starved_s = min(float(self._control["starved_s"][0]), announced - began)
        self.waits = Waits(idle_s=announced - began - starved_s, scatter_s=time.perf_counter() - announced)
        self.ended = self.ended or int(self._control["op"][0]) == Op.END
        self._announced = self._scatters = self._hungry_since = None
        return None if self.ended else self._rows()

    def close(self) -> None:
        """Free the communicator; collective, after the end of the stream."""
        self._comm.free()

    def _under_way(self, meanwhile: Callable[[], None]) -> bool:
        """Whether the next batch is announced here, and so on its way or there."""
        meanwhile()
        return self.poll() or self._scatters is not None

    @property
    def _count(self) -> int:
        return int(self._control["count"][0])

    def _announce(self) -> None:
        """Start the broadcast that announces a batch; rank 0 does so only when it has frames or the end."""
        if self._feed is not None:
            frames = self._feed()
            if frames is not None and not frames:
                return
            self._frames = frames or ()
            self._control["op"] = Op.END if frames is None else Op.FRAMES
            self._control["count"] = len(self._frames)
            hungry_s = time.perf_counter() - self._hungry_since if self._hungry_since is not None else 0.0
            self._control["starved_s"] = hungry_s
            self._control["records"][0, : len(self._frames)] = [
                (frame.kind, frame.index, frame.angle_rad, frame.acquired_s, frame.position) for frame in self._frames
            ]
        self._announced = self._comm.start_bcast(self._control.view(np.uint8))

    def _scatter(self, k: int) -> Request:
        if self._feed is None:
            return self._comm.raw.Iscatterv(None, [self._staging[k], self._slab.rows, self._row], root=0)
        pixels = self._frames[k].pixels
        self.bytes_scattered += pixels.nbytes - pixels[self._slab.slice].nbytes
        return self._comm.raw.Iscatterv([pixels, self._counts, self._starts, self._row], MPI.IN_PLACE, root=0)

    def _rows(self) -> list[SlabFrame]:
        own = (frame.pixels[self._slab.slice] for frame in self._frames) if self._feed else iter(self._staging)
        records = self._control["records"][0, : self._count].tolist()
        return [
            SlabFrame(
                kind=FrameKind(kind),
                index=index,
                angle_rad=angle_rad,
                acquired_s=acquired_s,
                position=position,
                pixels=pixels,
            )
            for (kind, index, angle_rad, acquired_s, position), pixels in zip(records, own, strict=False)
        ]
