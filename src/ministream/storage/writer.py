"""Snapshots and the final volume, written atomically by all ranks."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream import atomic, log
from ministream.errors import MachineError, StorageError
from ministream.model import Scan, Slab, to_per_cm
from ministream.storage import layout, schema
from ministream.storage.comm import Communicator, together
from ministream.storage.direct import Direct, Places
from ministream.storage.reserve import reserve
from ministream.storage.schema import VolumeHeader, VolumeState
from ministream.storage.transfer import Collective, ThroughRoot, Transfer

_LOG = log.get(__name__)

FINAL = "recon.h5"
METADATA_BYTES = 256 << 10


# Chunks of at least 64 KiB are page-aligned, so that no two ranks write to the same page.
PAGE_BYTES = 4096
ALIGNED_BYTES = 64 << 10


class VolumeWriter:
    """Writes volumes [scan.rows, n, n] into `directory`; every method but `poll` and `close` is collective.

    Each rank passes its `slab` as an image [n, n, slices] of attenuation per pixel, slices innermost; padding after
    `slab.rows` is ignored. The file holds 1/cm where the scan has a pixel size. Rank 0 allocates the file and reserves
    its space; the file is then filled, synced and renamed. A failed write raises StorageError, naming the file and the
    cause, on all ranks; the temporary file is removed, and earlier files remain unchanged.

    `how` is "direct": every rank writes its own slab, and snapshots overlap with computation; or "hdf5": HDF5 writes,
    collectively with an MPI build of h5py, else through rank 0. Writing through rank 0 is also used where the ranks do
    not share a directory. "auto" selects "direct" for snapshots, and parallel HDF5, if available, for the final
    volume, which cannot overlap with computation.
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
        how: Literal["auto", "direct", "hdf5"] = "auto",
    ) -> None:
        self._comm, self._directory, self._slab, self._how = comm, directory, slab, how
        self._slabs = comm.allgather(slab)
        _check(self._slabs, scan.rows)
        self._largest = self._slabs[0].rows
        self._scale = to_per_cm(scan.pixel_size_um)
        self._header = VolumeHeader(scan=scan, n=n, axis_col=axis_col, ranks=comm.size, config=config)
        self._places: Places | None = None
        together(comm, directory, partial(directory.mkdir, parents=True, exist_ok=True), root_only=True)
        shared = self._all_see_the_directory()
        self._direct = Direct(comm, slab, self._largest, n, self._scale) if how != "hdf5" and shared else None
        self._collective = bool(shared and comm.raw is not None and comm.size > 1 and h5py.get_config().mpi)
        self._behind: Path | None = None
        self._late: StorageError | None = None
        self.lost: list[Path] = []
        self._final_direct = self._direct is not None and (how == "direct" or not self._collective)
        if comm.rank == 0:
            _LOG.info("volumes go to %s: %s, %d ranks", directory, self.way, comm.size)

    @property
    def way(self) -> str:
        """How volumes are written, for the log and the summary."""
        hdf5 = Collective.name if self._collective else ThroughRoot.name
        if self._direct is None:
            return hdf5
        return self._direct.name if self._final_direct else f"{hdf5}; snapshots: {self._direct.name}"

    @property
    def collective(self) -> bool:
        """Whether HDF5 writes from all ranks together."""
        return self._collective

    @property
    def hidden_s(self) -> float:
        """Seconds of writing on this rank that overlapped with computation."""
        return self._direct.hidden_s if self._direct is not None else 0.0

    def snapshot(self, number: int, image: NDArray[np.float32], state: VolumeState) -> Path:
        """Write `000012-recon.h5`, the name that aps-mini-apps gives the image after update 12.

        The write may still be pending on return; the image may change. `settle` reports a later failure.
        """
        return self._write(f"{number:06d}-{FINAL}", image, state, behind=True)

    def final(self, image: NDArray[np.float32], state: VolumeState) -> Path:
        """Write `recon.h5`, and wait for all pending writes."""
        return self._write(FINAL, image, state, behind=False)

    def elsewhere(self, directory: Path) -> Self:
        """A writer of the same volumes into another directory; collective. Raises StorageError."""
        return type(self)(
            self._comm,
            directory,
            scan=self._header.scan,
            n=self._header.n,
            slab=self._slab,
            axis_col=self._header.axis_col,
            config=self._header.config,
            how=self._how,
        )

    def poll(self) -> None:
        """Progress pending writes without blocking; for a caller that computes or waits for something else."""
        if self._direct is not None:
            self._direct.poll()

    def settle(self) -> None:
        """Check the result of a pending snapshot, without waiting for the disk.

        Raises the StorageError of one that failed, once; its path is then in `lost`.
        """
        if self._direct is not None:
            self._ended(self._direct.settle)
        late, self._late = self._late, None
        if late is not None:
            raise late

    def finish(self) -> None:
        """Wait until a pending snapshot is complete. Raises as `settle` does."""
        self._wait()
        self.settle()

    def close(self) -> None:
        """Abandon pending writes."""
        if self._direct is not None:
            self._direct.close()

    def _wait(self) -> None:
        """Wait for a pending snapshot; its failure must not prevent the next volume."""
        if self._direct is not None:
            self._ended(self._direct.finish)

    def _ended(self, end: Callable[[], None]) -> None:
        try:
            end()
        except StorageError as error:
            self._late = error
            if self._behind is not None:
                self.lost.append(self._behind)

    def _all_see_the_directory(self) -> bool:
        """Whether a file created by rank 0 in the directory is visible to every rank."""
        name = f".seen-by-all-{uuid.uuid4().hex}" if self._comm.rank == 0 else ""
        probe = self._directory / self._comm.allgather(name)[0]
        together(self._comm, self._directory, partial(probe.touch), root_only=True)
        seen = all(self._comm.allgather(probe.exists()))
        together(self._comm, self._directory, partial(probe.unlink), root_only=True)
        return seen

    def _write(self, name: str, image: NDArray[np.float32], state: VolumeState, *, behind: bool) -> Path:
        path = self._directory / name
        part = atomic.part_of(path)
        self._wait()
        try:
            together(self._comm, path, self._lay_out, part, state, root_only=True)
            if self._direct is not None and (behind or self._final_direct):
                places = self._comm.allgather(self._places)[0]
                self._behind = path
                self._direct.begin(part, path, places, image, copied=behind)
                if not behind:
                    self._direct.finish()
                return path
            self._fill(path, part, image)
            together(self._comm, path, atomic.commit, part, path, root_only=True)
        except StorageError:
            if self._comm.rank == 0:
                atomic.discard(part)
            raise
        return path

    def _lay_out(self, part: Path, state: VolumeState) -> None:
        """Create the file with all metadata and allocated but unwritten data, and reserve its space."""
        n, slices = self._header.n, self._header.scan.rows
        # reserve first: HDF5 can crash when the disk is too full for its metadata
        reserve(part, slices * n * n * layout.ITEM + METADATA_BYTES)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        with h5py.File(
            part, "w", locking=False, alignment_threshold=ALIGNED_BYTES, alignment_interval=PAGE_BYTES
        ) as file:
            data = file.create_dataset(
                schema.DATASET,
                shape=(slices, n, n),
                dtype="<f4",
                chunks=layout.chunk_shape(n),
                fill_time="never",
                dcpl=creation,
            )
            schema.describe(file, self._header, state)
            self._places = Places.of(data)
        reserve(part, part.stat().st_size)

    def _fill(self, path: Path, part: Path, image: NDArray[np.float32]) -> None:
        scratch = np.empty(layout.scratch_bytes(self._largest, self._header.n) // layout.ITEM, np.float32)
        transfer = self._transfer(scratch)
        together(self._comm, path, transfer.open, part)
        try:
            for rows in layout.blocks(self._largest, self._header.n):
                block = layout.band(scratch, self._slab, rows, self._header.n)
                layout.slices_first(image, rows, block, self._scale)
                together(self._comm, path, transfer.write, rows, block)
        except StorageError:
            # the first failure is the one to report; closing a file that cannot be written often fails too
            with contextlib.suppress(OSError, RuntimeError):
                transfer.close()
            raise
        together(self._comm, path, transfer.close)
        together(self._comm, path, transfer.verify)

    def _transfer(self, scratch: NDArray[np.float32]) -> Transfer:
        if self._collective:
            return Collective(self._comm, self._slab, scratch)
        return ThroughRoot(self._comm, self._slabs, scratch)


def _check(slabs: list[Slab], rows: int) -> None:
    tiled = [slab.first for slab in slabs] == [0, *(slab.stop for slab in slabs[:-1])] and slabs[-1].stop == rows
    if not tiled or any(not 1 <= slab.rows <= slabs[0].rows for slab in slabs):
        raise MachineError(f"slabs {slabs} do not tile {rows} slices with the largest on rank 0")
