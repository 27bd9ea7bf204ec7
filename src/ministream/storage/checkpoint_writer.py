"""Checkpoints overlapped with computation: one file per rank, complete when rank 0 renames the folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import StorageError
from ministream.state import Shared, Slabwise, State, Value
from ministream.storage.checkpoint import FORMAT, MANIFEST, ArrayPart, checkpoints
from ministream.storage.comm import Communicator, GatherHandle, together
from ministream.storage.reserve import reserve

KEPT = 2
_PART = ".checkpoint.part"
_NAP_S = 1e-3


@dataclass(kw_only=True)
class _PendingCheckpoint:
    """A pending checkpoint; on rank 0 `naming` is the rename task, started when every rank has written its file."""

    part: Path
    values: Mapping[str, Value]
    gathering: GatherHandle
    writing: Future[list[ArrayPart]]
    told: bool = False
    naming: Future[None] | None = None
    over: bool = False
    failure: StorageError | None = None


class CheckpointWriter:
    """Writes one checkpoint at a time into `directory`, in a thread per rank that does not call MPI.

    Every method but `poll` and `close` is collective. `first_row` is that of this rank's slab. `seconds` is the time
    spent by this rank's thread so far, `nbytes` its written bytes.
    """

    def __init__(self, comm: Communicator, directory: Path, first_row: int) -> None:
        self._comm, self._directory, self._first_row = comm, directory, first_row
        self._copies: dict[str, NDArray[Any]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._abandoned = threading.Event()
        self._pending: _PendingCheckpoint | None = None
        self.seconds, self.nbytes = 0.0, 0

    def begin(self, state: State, *, copied: bool = True) -> None:
        """Start to write `state`, after waiting for a pending checkpoint. Raises StorageError on every rank.

        Arrays that every rank has, and plain values, are those of rank 0. With `copied` arrays may change as soon as
        this returns; the copy buffers are reused. Otherwise they must not change before `finish`.
        """
        self.finish()
        part = self._directory / _PART
        together(self._comm, part, _make_empty, part, root_only=True)
        rank = self._comm.rank
        held = {name: value for name, value in state.items() if _is_array(value) and (rank == 0 or _is_shared(value))}
        arrays = {name: _array(value) for name, value in held.items()}
        if copied:
            arrays = {name: self._copy_of(name, array) for name, array in arrays.items()}
        self._pending = _PendingCheckpoint(
            part=part,
            values={name: value for name, value in state.items() if not _is_array(value)},
            gathering=self._comm.gathering(),
            writing=self._pool.submit(self._write, part, self._layout(held), arrays),
        )

    def poll(self) -> None:
        """Notify rank 0 when this rank has written; on rank 0, rename the checkpoint when all ranks have."""
        pending = self._pending
        if pending is None or pending.over:
            return
        if not pending.told and pending.writing.done():
            pending.told = True
            pending.failure = _failure(pending.part, pending.writing.exception())
            pending.gathering.give(None if pending.failure else pending.writing.result())
        if self._comm.rank != 0:
            pending.over = pending.told
            return
        written = pending.gathering.take()
        if written is not None and pending.naming is None:
            pending.naming = self._pool.submit(self._name, pending, written)
        if pending.naming is not None and pending.naming.done():
            pending.failure = pending.failure or _failure(pending.part, pending.naming.exception())
            pending.over = True

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is pending; after `settle` equal on all ranks."""
        return self._pending is not None

    def settle(self) -> bool:
        """Whether a checkpoint has been completed since the last call; raises the StorageError of one that failed."""
        self.poll()
        return self._pending is not None and self._comm.allgather(self._pending.over)[0] and self._finish()

    def finish(self) -> bool:
        """Wait for the pending checkpoint; otherwise as `settle`."""
        while self._pending is not None and not self._pending.over:
            time.sleep(_NAP_S)
            self.poll()
        return self._pending is not None and self._finish()

    def discard(self) -> None:
        """Abandon the pending checkpoint, and remove all: the run is complete."""
        self._abandoned.set()
        try:
            self.finish()
        finally:
            if self._comm.rank == 0:
                shutil.rmtree(self._directory / _PART, ignore_errors=True)
                for path in checkpoints(self._directory):
                    shutil.rmtree(path, ignore_errors=True)
                if self._directory.is_dir() and not any(self._directory.iterdir()):
                    self._directory.rmdir()

    def close(self) -> None:
        """Abandon the pending checkpoint, and remove its partial files."""
        self._abandoned.set()
        self._pool.shutdown(wait=True)
        if self._pending is not None:
            self._pending.gathering.drop()
            if self._comm.rank == 0:
                shutil.rmtree(self._pending.part, ignore_errors=True)
        self._pending = None

    def _finish(self) -> bool:
        pending, self._pending = self._pending, None
        assert pending is not None
        try:
            self._comm.agree(pending.failure)
        except StorageError:
            if self._comm.rank == 0:
                shutil.rmtree(pending.part, ignore_errors=True)
            raise
        return True

    def _layout(self, held: Mapping[str, Value]) -> list[ArrayPart]:
        """The positions of this rank's arrays in its file."""
        found, offset = [], 0
        for name, value in held.items():
            array = _array(value)
            part = ArrayPart(
                name=name,
                file=f"rank-{self._comm.rank:04d}.bin",
                offset=offset,
                dtype=array.dtype.newbyteorder("<").str,
                shape=array.shape,
            )
            if isinstance(value, Slabwise):
                part = dataclasses.replace(part, held="slab", axis=value.axis, first=self._first_row)
            elif isinstance(value, Shared):
                part = dataclasses.replace(part, held="share", first=value.part.start)
            found.append(part)
            offset += part.nbytes
        return found

    def _copy_of(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        copy = self._copies.get(name)
        if copy is None or copy.shape != array.shape:
            copy = self._copies[name] = np.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        return copy

    def _write(self, folder: Path, parts: Sequence[ArrayPart], arrays: Mapping[str, NDArray[Any]]) -> list[ArrayPart]:
        """Write this rank's file and sync it, in the thread; returns the parts with their checksums."""
        began = time.perf_counter()
        path, size, found = folder / f"rank-{self._comm.rank:04d}.bin", sum(part.nbytes for part in parts), []
        if size:
            reserve(path, size)  # detect a full disk before anything is written
        with path.open("r+b" if size else "wb") as file:
            for part in parts:
                digest = xxhash.xxh3_64()
                for block in _blocks(arrays[part.name], part.dtype):
                    if self._abandoned.is_set():
                        return []
                    digest.update(block)
                    file.write(block)
                found.append(dataclasses.replace(part, digest=digest.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        self.seconds += time.perf_counter() - began
        self.nbytes += size
        return found

    def _name(self, pending: _PendingCheckpoint, written: Sequence[list[ArrayPart] | None]) -> None:
        """Write the manifest, rename the folder, remove all but the newest; on rank 0, in the thread."""
        if self._abandoned.is_set() or any(parts is None for parts in written):
            return
        parts = [dataclasses.asdict(part) for parts in written for part in parts or ()]
        body = json.dumps({"format": FORMAT, "ranks": len(written), "values": pending.values, "parts": parts})
        with atomic.replacing(pending.part / MANIFEST) as path:
            path.write_text(json.dumps({"digest": xxhash.xxh3_64_hexdigest(body.encode()), "body": body}))
        there = checkpoints(self._directory)
        number = 1 + int(there[0].name.rpartition("-")[2]) if there else 1
        atomic.commit(pending.part, self._directory / f"checkpoint-{number:06d}")
        for older in checkpoints(self._directory)[KEPT:]:
            shutil.rmtree(older, ignore_errors=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _is_shared(value: Value) -> bool:
    return isinstance(value, Slabwise | Shared)


def _is_array(value: Value) -> bool:
    return isinstance(value, np.ndarray) or _is_shared(value)


def _array(value: Value) -> NDArray[Any]:
    array = value.array if isinstance(value, Slabwise | Shared) else value
    assert isinstance(array, np.ndarray)
    return array


def _blocks(array: NDArray[Any], dtype: str) -> Iterator[memoryview]:
    """The bytes of an array, row by row: an image or a window is not contiguous."""
    for row in array if array.ndim > 1 else [array]:
        if row.size:
            yield np.ascontiguousarray(row, dtype).data.cast("B")


def _failure(part: Path, error: BaseException | None) -> StorageError | None:
    if error is None or isinstance(error, StorageError):
        return error
    if isinstance(error, OSError):
        return atomic.failed(part, error)
    raise error
