"""Direct writes: every rank writes its slab to its file positions, overlapped with computation.

HDF5 only allocates the file. The pixels are written with pwrite(2) in a thread that calls neither HDF5 nor MPI, so that
MPI needs no THREAD_MULTIPLE, and every file system error is reported on the rank that caused it.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import StorageError
from ministream.model import Slab
from ministream.storage import layout
from ministream.storage.comm import Communicator, GatherHandle

Image = NDArray[np.float32]

NAP_S = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """File positions of the pixels of a chunked dataset [slice, n, n].

    `offsets` [slice, band] are the file positions of the chunks, each one slice by `rows` image rows.
    """

    offsets: NDArray[np.int64]
    rows: int

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> Places:
        """The positions of a dataset whose chunks are allocated."""
        slices, n, _ = dataset.shape
        rows = dataset.chunks[1]
        where = dataset.id.get_chunk_info_by_coord
        bands = [[where((k, row, 0)).byte_offset for row in range(0, n, rows)] for k in range(slices)]
        return cls(offsets=np.array(bands, np.int64), rows=rows)

    def pieces(self, index: int, rows: slice, row_bytes: int) -> list[tuple[int, int]]:
        """(file position, bytes) of the image rows `rows` of slice `index`, one after the other."""
        found = []
        first = rows.start
        while first < rows.stop:
            band, inside = divmod(first, self.rows)
            count = min(rows.stop - first, self.rows - inside)
            found.append((int(self.offsets[index, band]) + inside * row_bytes, count * row_bytes))
            first += count
        return found


@dataclass(kw_only=True)
class _PendingVolume:
    """A pending volume. On rank 0 `naming` is the rename task, started when every rank has written its slab."""

    part: Path
    path: Path
    gathering: GatherHandle
    writing: Future[float]
    told: bool = False
    naming: Future[None] | None = None
    over: bool = False
    failure: StorageError | None = None


class Direct:
    """One volume at a time, its values times `scale`, written in a thread of this rank.

    `begin`, `settle` and `finish` are collective; `poll` may be called at any time and is not collective.
    `hidden_s` are the seconds of writing overlapped with computation.
    """

    name = "one writer per rank, overlapped with computation"

    def __init__(self, comm: Communicator, slab: Slab, largest: int, n: int, scale: float = 1.0) -> None:
        self._comm, self._slab, self._largest, self._n, self._scale = comm, slab, largest, n, scale
        self._scratch = np.empty(layout.scratch_bytes(largest, n) // layout.ITEM, np.float32)
        self._copy: Image | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="volume-writer")
        self._abandoned = threading.Event()
        self._pending: _PendingVolume | None = None
        self.hidden_s = 0.0

    def begin(self, part: Path, path: Path, places: Places, image: Image, *, copied: bool) -> None:
        """Start to write this rank's slab to the allocated file `part`, renamed to `path` when all ranks are done.

        With `copied` the image may change as soon as this returns, otherwise only after `finish`.
        """
        self._pending = _PendingVolume(
            part=part,
            path=path,
            gathering=self._comm.gathering(),
            writing=self._pool.submit(self._write, part, places, self._copy_of(image) if copied else image),
        )

    def poll(self) -> None:
        """Notify rank 0 when this rank has written; on rank 0, rename the file when all ranks have."""
        pending = self._pending
        if pending is None or pending.over:
            return
        if not pending.told and pending.writing.done():
            pending.told = True
            error = pending.writing.exception()
            pending.failure = _failure(pending.path, error)
            pending.gathering.give(error is None)
        if self._comm.rank != 0:
            pending.over = pending.told
            return
        written = pending.gathering.take()
        if written is not None and pending.naming is None:
            pending.naming = self._pool.submit(_end, pending.part, pending.path, all(written))
        if pending.naming is not None and pending.naming.done():
            pending.failure = pending.failure or _failure(pending.path, pending.naming.exception())
            pending.over = True

    def settle(self) -> None:
        """Check whether all ranks are done; collective. Raises the StorageError of a failed rank on every rank."""
        self.poll()
        if self._pending is not None and self._comm.allgather(self._pending.over)[0]:
            self._finish(waited_s=0.0)

    def finish(self) -> None:
        """Wait until the volume is complete and renamed; collective. Raises as `settle` does."""
        if self._pending is None:
            return
        began = time.perf_counter()
        while not self._pending.over:
            time.sleep(NAP_S)
            self.poll()
        self._finish(waited_s=time.perf_counter() - began)

    def close(self) -> None:
        """Abandon the pending volume, and remove its temporary file."""
        self._abandoned.set()
        self._pool.shutdown(wait=True)
        if self._pending is not None:
            self._pending.gathering.drop()
            if self._comm.rank == 0:
                atomic.discard(self._pending.part)
        self._pending = None

    def _finish(self, *, waited_s: float) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        self._comm.agree(pending.failure)
        self.hidden_s += max(0.0, pending.writing.result() - waited_s)

    def _copy_of(self, image: Image) -> Image:
        if self._copy is None:
            self._copy = np.empty_like(image)
        np.copyto(self._copy, image)
        return self._copy

    def _write(self, part: Path, places: Places, image: Image) -> float:
        """Transpose and write, block by block, then sync; in the thread. Returns the seconds it took."""
        began = time.perf_counter()
        descriptor = os.open(part, os.O_WRONLY)
        try:
            for rows in layout.blocks(self._largest, self._n):
                if self._abandoned.is_set():
                    break
                block = layout.band(self._scratch, self._slab, rows, self._n)
                layout.slices_first(image, rows, block, self._scale)
                self._store(descriptor, places, rows, block)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return time.perf_counter() - began

    def _store(self, descriptor: int, places: Places, rows: slice, block: Image) -> None:
        for k, band in enumerate(block):
            left = memoryview(band).cast("B")
            for position, size in places.pieces(self._slab.first + k, rows, self._n * layout.ITEM):
                _pwrite(descriptor, left[:size], position)
                left = left[size:]


def _pwrite(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of `data`: a call may write less, and the next call then raises the cause."""
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count


def _end(part: Path, path: Path, written: bool) -> None:
    if written:
        atomic.commit(part, path)
    else:
        atomic.discard(part)


def _failure(path: Path, error: BaseException | None) -> StorageError | None:
    if error is None or isinstance(error, OSError):
        return None if error is None else atomic.failed(path, error)
    raise error
