"""Snapshots and the final volume, written by all ranks, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream import atomic, log
from ministream.errors import MachineError, StorageError
from ministream.model import Scan, Slab
from ministream.storage import layout, schema
from ministream.storage.comm import Communicator, together
from ministream.storage.reserve import reserve
from ministream.storage.schema import VolumeHeader, VolumeState
from ministream.storage.transfer import Collective, ThroughRoot, Transfer, band

_LOG = log.get(__name__)

FINAL = "recon.h5"
METADATA_BYTES = 256 << 10


class VolumeWriter:
    """Writes volumes [scan.rows, n, n] into `directory`; every method is collective.

    Each rank hands in its `slab` as an image [n, n, slices], slices innermost, padding after `slab.rows`
    ignored. With an MPI build of h5py all ranks write together; otherwise the blocks go through rank 0.
    A file is laid out and its space reserved by rank 0, filled in blocks, synced, and only then renamed.
    A write that fails raises StorageError, naming the file and the cause, on all ranks; the temporary file
    is gone then, and the files written earlier are untouched.
    """

    def __init__(
        self,
        comm: Communicator,
        directory: Path,
        *,
        scan: Scan,
        n: int,
        slab: Slab,
        axis_col: float,
        config: Mapping[str, Any],
    ) -> None:
        self._comm, self._directory, self._slab = comm, directory, slab
        self._slabs = comm.allgather(slab)
        _check(self._slabs, scan.rows)
        self._largest = self._slabs[0].rows
        self._header = VolumeHeader(scan=scan, n=n, axis_col=axis_col, ranks=comm.size, config=config)
        self._scratch = np.empty(layout.scratch_bytes(self._largest, n) // layout.ITEM, np.float32)
        self._collective = comm.raw is not None and comm.size > 1 and h5py.get_config().mpi
        together(comm, directory, partial(directory.mkdir, parents=True, exist_ok=True), root_only=True)
        if comm.rank == 0:
            _LOG.info("volumes go to %s: %s, %d ranks", directory, self.way, comm.size)

    @property
    def way(self) -> str:
        """How volumes are written, for the log and the summary."""
        return Collective.name if self._collective else ThroughRoot.name

    def snapshot(self, number: int, image: NDArray[np.float32], state: VolumeState) -> Path:
        """Write `000012-recon.h5`, the name that aps-mini-apps gives the image after update 12."""
        return self._write(f"{number:06d}-{FINAL}", image, state)

    def final(self, image: NDArray[np.float32], state: VolumeState) -> Path:
        """Write `recon.h5`."""
        return self._write(FINAL, image, state)

    def _write(self, name: str, image: NDArray[np.float32], state: VolumeState) -> Path:
        path = self._directory / name
        part = atomic.part_of(path)
        try:
            together(self._comm, path, self._lay_out, part, state, root_only=True)
            self._fill(path, part, image)
            together(self._comm, path, atomic.commit, part, path, root_only=True)
        except StorageError:
            if self._comm.rank == 0:
                part.unlink(missing_ok=True)
            raise
        return path

    def _lay_out(self, part: Path, state: VolumeState) -> None:
        """Create the file with all metadata and unwritten data, and reserve its space."""
        n, slices = self._header.n, self._header.scan.rows
        # first of all: HDF5 can crash when the disk is too full for its own metadata
        reserve(part, slices * n * n * layout.ITEM + METADATA_BYTES)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        with h5py.File(part, "w", locking=False) as file:
            file.create_dataset(
                schema.DATASET,
                shape=(slices, n, n),
                dtype="<f4",
                chunks=layout.chunk_shape(n),
                fill_time="never",
                dcpl=creation,
            )
            schema.describe(file, self._header, state)
        reserve(part, part.stat().st_size)

    def _fill(self, path: Path, part: Path, image: NDArray[np.float32]) -> None:
        transfer = self._transfer()
        together(self._comm, path, transfer.open, part)
        try:
            for rows in layout.blocks(self._largest, self._header.n):
                block = band(self._scratch, self._slab, rows, self._header.n)
                layout.slices_first(image, rows, block)
                together(self._comm, path, transfer.write, rows, block)
        except StorageError:
            # the first failure is the one to report; closing a file that cannot be written often fails too
            with contextlib.suppress(OSError, RuntimeError):
                transfer.close()
            raise
        together(self._comm, path, transfer.close)
        together(self._comm, path, transfer.verify)

    def _transfer(self) -> Transfer:
        if self._collective:
            return Collective(self._comm, self._slab, self._scratch)
        return ThroughRoot(self._comm, self._slabs, self._scratch)


def _check(slabs: list[Slab], rows: int) -> None:
    tiled = [slab.first for slab in slabs] == [0, *(slab.stop for slab in slabs[:-1])] and slabs[-1].stop == rows
    if not tiled or any(not 1 <= slab.rows <= slabs[0].rows for slab in slabs):
        raise MachineError(f"slabs {slabs} do not tile {rows} slices with the largest on rank 0")
