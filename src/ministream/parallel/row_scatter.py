"""Distribute every frame's detector rows to the ranks that own them, overlapped with computation.

Frames are sent in batches: one small broadcast announces the batch, then one scatter per frame sends the rows
directly from the receive buffer, because a slab of a C-ordered frame is contiguous. All operations are
non-blocking; computing code calls `poll` regularly so that MPI makes progress.
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

# MPI progresses a pending batch only during polls, and one sleep is as long as a transfer: poll without sleeping for
# EAGER_S while a batch is in transit, and for NEXT_S before one, since consecutive batches are announced that quickly.
EAGER_S = 2e-3
NEXT_S = 2e-4

_RECORD = np.dtype([("kind", "u1"), ("index", "i8"), ("angle_rad", "f8"), ("acquired_s", "f8"), ("position", "f8")])


class Op(enum.IntEnum):
    """The type of a batch."""

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

    `idle_s`: rank 0 was busy and had not announced them. `scatter_s`: the rows were in transit. The rest of the wait
    is for frames to arrive; a transfer that overlaps with computation is in neither.
    """

    idle_s: float = 0.0
    scatter_s: float = 0.0


Feed = Callable[[], Sequence[Frame] | None]


def _nothing() -> None:
    """Default action of a rank while it waits."""


class RowScatter:
    """One rank's end of the distribution; every rank creates one, in the same order.

    `feed`, on rank 0, returns the frames that are ready (at most `batch`, possibly none) without waiting, and
    None once, at the end of the stream. Rank 0 neither stores nor copies pixels besides the frames from `feed`;
    the other ranks hold `batch` frames of their own rows.
    """

    def __init__(self, comm: Comm, scan: Scan, slabs: Sequence[Slab], batch: int, feed: Feed | None) -> None:
        self._comm = comm.dup()
        self._feed = feed
        self._slab = slabs[comm.rank]
        self._counts = [slab.rows for slab in slabs]
        self._starts = [slab.first for slab in slabs]
        dtype = np.dtype(scan.dtype)
        # Counts in rows instead of bytes stay below the 32-bit limit of MPI for frames larger than 2 GiB.
        self._row = row_type(scan.cols * dtype.itemsize)
        self._staging = np.empty((0 if feed else batch, self._slab.rows, scan.cols), dtype)
        self._control = np.zeros(
            # fixed size: the other ranks can post the broadcast before they know the batch
            1,
            [("op", "i8"), ("count", "i8"), ("starved_s", "f8"), ("records", _RECORD, (batch,))],
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
        # Rank 0 starts the scatters immediately; the other ranks first need the frame count from the broadcast.
        if self._scatters is None and (self._feed is not None or self._announced.Test()):
            self._announced_at = time.perf_counter()
            self._scatters = [self._scatter(k) for k in range(self._count)]
        return self._scatters is not None and Request.Testall([self._announced, *self._scatters])

    def take(self, meanwhile: Callable[[], None] = _nothing) -> list[SlabFrame] | None:
        """Wait for the next batch; None at the end of the stream. `meanwhile` is called until it is announced.

        Afterwards `waits` contains the reasons for this wait.
        """
        began = self._hungry_since = time.perf_counter()
        wait_until(lambda: self._under_way(meanwhile), eager_s=NEXT_S)
        wait_until(self.poll, eager_s=EAGER_S)
        # A batch announced before this call was overlapped with computation until now. `starved_s` is the time that
        # rank 0 itself waited for frames: the other ranks must not count it as idle.
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
        """Whether the next batch is announced on this rank: in transit or complete."""
        meanwhile()
        return self.poll() or self._scatters is not None

    @property
    def _count(self) -> int:
        return int(self._control["count"][0])

    def _announce(self) -> None:
        """Start the broadcast that announces a batch; rank 0 waits until it has frames or the end of the stream."""
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
        # IN_PLACE: rank 0 uses its own rows directly in the receive buffer (see `_rows`)
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
