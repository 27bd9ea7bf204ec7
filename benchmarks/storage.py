"""`python -m benchmarks storage`: how fast volumes are written, against bare writers.

Each way ends when the file is synced; MiB of volume per second:

    posix        every rank writes its slab, slices first already, to its place in one file with pwrite
    hdf5         the same in one collective call of parallel HDF5
    compressed   the same with deflate and shuffle, which HDF5 can only write collectively
    product      the product's writer: from slices innermost, in blocks, reserved before and renamed after
    collective   the product's writer through parallel HDF5 ([output] writer = "hdf5"), read back and compared

`waited` is the share of a snapshot's seconds for which the ranks wait; the rest is overlapped with computation.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _ranks, machine

MIB = 2**20


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks storage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--n", type=int, nargs="+", default=[512, 1024], help="slices are n × n pixels")
    parser.add_argument("--slices", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repetitions", type=int, default=5, help="the median counts")
    parser.add_argument("--directory", type=Path, default=None, help="file system to measure (default: temporary)")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    if _ranks.inside():
        _run(options)
        return 0
    busy = machine.warn_unless_quiet()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        rows = _ranks.start("storage", [*argv, "--directory", folder], options.ranks)
    machine.show(rows)
    if options.save:
        print(machine.save("storage", argv, rows, busy=busy))
    return 0


def _run(options: argparse.Namespace) -> None:
    from ministream.parallel import mpi

    comm = mpi.world(options.ranks)
    rows = [
        _measure(comm, options.directory, n, slices, options.repetitions)
        for n in options.n
        for slices in options.slices
    ]
    if comm.rank == 0:
        _ranks.hand_back(rows)


def _measure(comm: Any, folder: Path, n: int, slices: int, repetitions: int) -> dict[str, Any]:
    volume = _Volume(comm, folder, n, slices)
    ways = {
        "posix": volume.posix,
        "hdf5": volume.hdf5,
        "compressed": volume.compressed,
        "product": volume.product,
        "collective": volume.collective,
    }
    seconds = {name: _median(comm, way, repetitions) for name, way in ways.items()}
    begun = _median(comm, volume.begin_snapshot, repetitions, after=volume.finish_snapshot)
    size = slices * n * n * 4 / MIB
    return {
        "n": n,
        "slices": slices,
        "ranks": comm.size,
        "volume_mib": size,
        **{f"{name}_mib_s": size / s for name, s in seconds.items()},
        "of_hdf5": seconds["hdf5"] / seconds["product"],
        "of_posix": seconds["posix"] / seconds["product"],
        "compressed_to": volume.compressed_to,
        "waited": begun / seconds["product"],
    }


def _nothing() -> None:
    """The default `after`: nothing to do."""


def _median(comm: Any, write: Callable[[], None], repetitions: int, after: Callable[[], None] = _nothing) -> float:
    write()
    after()
    seconds = []
    for _ in range(repetitions):
        comm.raw.Barrier()
        started = time.perf_counter()
        write()
        comm.raw.Barrier()
        seconds.append(time.perf_counter() - started)
        after()
    return float(np.median(seconds))


class _Volume:
    """One volume, written in every way that is compared, over the file of the time before."""

    def __init__(self, comm: Any, folder: Path, n: int, slices: int) -> None:
        from ministream import partition
        from ministream.ledger import Ledger
        from ministream.model import Scan
        from ministream.recon.footprint import padded_slices
        from ministream.storage import VolumeState, VolumeWriter

        self._comm, self._folder, self._n, self._slices = comm, folder, n, slices
        self._slab = partition.slabs(slices, comm.size)[comm.rank]
        self._image = np.zeros((n, n, padded_slices(self._slab.rows)), np.float32)
        # Smooth with a little noise, as a reconstruction is: what compresses is not random.
        noise = np.random.default_rng(comm.rank).normal(scale=1e-3, size=(n, n))
        self._image[:] = (np.hypot(*np.ogrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]) + noise)[:, :, None]
        self._first = np.ascontiguousarray(np.moveaxis(self._image[:, :, : self._slab.rows], 2, 0))
        self.compressed_to = 1.0
        self._state = VolumeState(ledger=Ledger(), updates=1, elapsed_s=1.0, angles_rad=(0.0, 3.0))
        scan = Scan(scan_id="benchmark", rows=slices, cols=n, projections=1, flats=0, darks=0, dtype="<u2")
        self._direct, self._collective = (
            VolumeWriter(comm.dup(), folder, scan=scan, n=n, slab=self._slab, axis_col=(n - 1) / 2, config={}, how=how)
            for how in ("direct", "hdf5")
        )

    def posix(self) -> None:
        """The lower limit: plain pwrite."""
        descriptor = os.open(self._folder / "posix.raw", os.O_CREAT | os.O_WRONLY, 0o600)
        data, offset = memoryview(self._first).cast("B"), self._slab.first * self._n * self._n * 4
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
        os.fsync(descriptor)
        os.close(descriptor)

    def hdf5(self) -> None:
        """A bare parallel-HDF5 writer."""
        self._write_hdf5(self._folder / "bare.h5")

    def compressed(self) -> None:
        """The same through HDF5's filters."""
        path = self._folder / "compressed.h5"
        stored = self._write_hdf5(path, compression="gzip", compression_opts=1, shuffle=True)
        self.compressed_to = stored / (self._slices * self._n * self._n * 4)

    def product(self) -> None:
        """The product's writer."""
        self._direct.final(self._image, self._state)

    def collective(self) -> None:
        """The product's writer through parallel HDF5."""
        self._collective.final(self._image, self._state)

    def begin_snapshot(self) -> None:
        """The part of a write that blocks the rank."""
        self._direct.snapshot(1, self._image, self._state)

    def finish_snapshot(self) -> None:
        """The part of a write that is overlapped."""
        self._direct.finish()

    def _write_hdf5(self, path: Path, **filters: Any) -> int:
        import h5py

        from ministream.storage.layout import chunk_shape

        shape = (self._slices, self._n, self._n)
        with h5py.File(path, "w", driver="mpio", comm=self._comm.raw) as file:
            data = file.create_dataset("data", shape, "f4", chunks=chunk_shape(self._n), **filters)
            with data.collective:
                data[self._slab.slice] = self._first
            stored = int(data.id.get_storage_size())
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return stored
