"""Two methods to write slabs to a file that rank 0 has allocated: collectively, or through rank 0."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from ministream import atomic
from ministream.model import Slab
from ministream.storage.comm import Communicator
from ministream.storage.layout import band
from ministream.storage.schema import DATASET

Block = NDArray[np.float32]


def _digest(block: Block) -> int:
    return xxhash.xxh3_64_intdigest(block.data)


class Transfer(Protocol):
    """The transfer of one volume to disk. Every method is collective and raises OSError or RuntimeError on any rank."""

    name: str

    def open(self, part: Path) -> None: ...
    def write(self, rows: slice, block: Block) -> None:
        """Store `block` [this rank's slices, rows, n], which is in the scratch buffer and may be overwritten."""

    def close(self) -> None: ...
    def verify(self) -> None:
        """Check that the file contains the written data."""


class Collective:
    """Parallel HDF5: all ranks write their slabs in the same collective call.

    MPI-IO may report success for lost data (OMPIO of Open MPI 4 does so on a full disk), so each rank reads its
    slab back and compares digests before the file is renamed.
    """

    name = "parallel HDF5"

    def __init__(self, comm: Communicator, slab: Slab, scratch: Block) -> None:
        self._comm, self._slab, self._scratch = comm, slab, scratch
        self._written: list[tuple[slice, int]] = []

    def open(self, part: Path) -> None:
        self._part = part
        self._file = h5py.File(part, "r+", driver="mpio", comm=self._comm.raw)

    def write(self, rows: slice, block: Block) -> None:
        dataset = self._file[DATASET]
        self._written.append((rows, _digest(block)))
        with dataset.collective:
            dataset[self._slab.slice, rows, :] = block

    def close(self) -> None:
        self._file.close()
        atomic.sync(self._part)

    def verify(self) -> None:
        with h5py.File(self._part, "r", locking=False) as file:
            dataset = file[DATASET]
            for rows, digest in self._written:
                stored = band(self._scratch, self._slab, rows, dataset.shape[2])
                dataset.read_direct(stored, np.s_[self._slab.slice, rows, :])
                if _digest(stored) != digest:
                    raise OSError(errno.EIO, f"MPI-IO lost data of slices {self._slab.first} to {self._slab.stop - 1}")


class ThroughRoot:
    """Serial HDF5: rank 0 writes its own blocks, then receives and writes those of the other ranks one by one."""

    name = "HDF5 through rank 0"

    def __init__(self, comm: Communicator, slabs: list[Slab], scratch: Block) -> None:
        self._comm, self._slabs, self._scratch = comm, slabs, scratch

    def open(self, part: Path) -> None:
        if self._comm.rank == 0:
            self._part = part
            # without a chunk cache a failed write raises immediately; HDF5 can crash when a flush fails on close
            self._file = h5py.File(part, "r+", locking=False, rdcc_nbytes=0)

    def write(self, rows: slice, block: Block) -> None:
        if self._comm.rank != 0:
            self._comm.send_array(block, 0)
            return
        failure = self._store(0, rows, block)
        for source, slab in enumerate(self._slabs[1:], start=1):
            incoming = band(self._scratch, slab, rows, block.shape[2])  # overwrites the block, which is already stored
            self._comm.recv_array(incoming, source)  # also after a failure, because the sender waits
            failure = failure or self._store(source, rows, incoming)
        if failure is not None:
            raise failure

    def _store(self, source: int, rows: slice, block: Block) -> Exception | None:
        try:
            self._file[DATASET][self._slabs[source].slice, rows, :] = block
        except (OSError, RuntimeError) as error:
            return error
        return None

    def close(self) -> None:
        if self._comm.rank == 0:
            self._file.close()
            atomic.sync(self._part)

    def verify(self) -> None:
        """Nothing to do: serial HDF5 reports failed writes."""
