"""A multiscale image, OME-Zarr 0.5: https://ngff.openmicroscopy.org/0.5/.

Every shard is one task of one process: two writers of a shard lose each other's chunks without an error. A level is
made of the one before, so memory does not depend on the size of the volume.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from ministream.errors import MachineError
from ministream.storage.exports import Export
from ministream.storage.exports._pyramid import (
    Box,
    Level,
    boxes,
    factors,
    levels,
    magnified,
    mean,
    shape_of,
    within,
)
from ministream.storage.reader import Volume

FOLDER = True

Task = Callable[[Box], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _FromVolume:
    """Writes one shard of level 0, in whichever process it is called."""

    source: Path
    dataset: str
    folder: Path

    def __call__(self, box: Box) -> None:
        with Volume(self.source, self.dataset) as volume:
            _array(self.folder / "0")[box] = volume.block(*box)


@dataclass(frozen=True, kw_only=True, slots=True)
class _FromFiner:
    """Writes one shard of level `number`, reading the finer level chunk by chunk."""

    folder: Path
    number: int
    level: Level
    finer: Level

    def __call__(self, box: Box) -> None:
        source, by = _array(self.folder / str(self.number - 1)), factors(self.level, self.finer)
        shard = np.empty(shape_of(box), np.float32)
        for part in boxes(shape_of(box), self.level.chunk):
            shard[part] = mean(source[magnified(within(box, part), by, self.finer.shape)], by)
        _array(self.folder / str(self.number))[box] = shard


def write(export: Export, part: Path) -> None:
    """Write all levels. Raises OSError, and MachineError when a process is killed."""
    volume, pyramid = export.volume, levels(export.volume.shape)
    group = zarr.create_group(part, attributes=_attributes(export, pyramid), zarr_format=3, overwrite=True)
    for number, level in enumerate(pyramid):
        group.create_array(
            str(number),
            shape=level.shape,
            chunks=level.chunk,
            shards=level.shard,
            dtype=np.float32,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            dimension_names=("z", "y", "x"),
        )
    with _processes(min(export.workers, sum(1 for _ in pyramid[0].shards()))) as each:
        each(_FromVolume(source=volume.path, dataset=volume.dataset, folder=part), pyramid[0].shards())
        for number, level in enumerate(pyramid[1:], 1):
            each(_FromFiner(folder=part, number=number, level=level, finer=pyramid[number - 1]), level.shards())


def _array(folder: Path) -> zarr.Array:
    return zarr.open_array(folder, mode="r+")


@contextmanager
def _processes(workers: int) -> Iterator[Callable[[Task, Iterable[Box]], None]]:
    """A function that calls a task with every box, in so many processes, and returns when all are done."""
    if workers == 1:
        yield _here
        return
    before = os.environ.get("MPI4PY_RC_INITIALIZE")
    os.environ["MPI4PY_RC_INITIALIZE"] = "0"  # h5py imports mpi4py: the processes must not join the MPI job
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield functools.partial(_everywhere, pool, 2 * workers)
    except BrokenProcessPool as error:
        raise MachineError(
            "a writing process was killed, perhaps for want of memory. Use fewer processes with --workers"
        ) from error
    finally:
        os.environ.pop("MPI4PY_RC_INITIALIZE")
        if before is not None:
            os.environ["MPI4PY_RC_INITIALIZE"] = before


def _here(task: Task, tasks: Iterable[Box]) -> None:
    for box in tasks:
        task(box)


def _everywhere(pool: ProcessPoolExecutor, most: int, task: Task, tasks: Iterable[Box]) -> None:
    """Call `task` with every box, at most `most` calls under way; the first error cancels the rest."""
    left = iter(tasks)
    running: set[Future[None]] = {pool.submit(task, box) for box in islice(left, most)}
    try:
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            running |= {pool.submit(task, box) for box in islice(left, len(done))}
    finally:
        for future in running:
            future.cancel()


def _attributes(export: Export, pyramid: list[Level]) -> dict[str, Any]:
    pixel = export.volume.attributes.get("pixel_size_um")
    size, unit = (1.0, {}) if pixel is None else (float(pixel), {"unit": "micrometer"})
    multiscale = {
        "name": export.provenance.title,
        "type": "mean",
        "axes": [{"name": name, "type": "space"} | unit for name in "zyx"],
        "datasets": [
            {"path": str(number), "coordinateTransformations": _transformations(level, size)}
            for number, level in enumerate(pyramid)
        ],
    }
    return {"ome": {"version": "0.5", "multiscales": [multiscale]}, "ministream": dict(export.provenance.details)}


def _transformations(level: Level, size: float) -> list[dict[str, Any]]:
    """Size and centre of the first voxel: a mean of k voxels lies (k - 1) / 2 voxels behind the first one's centre."""
    return [
        {"type": "scale", "scale": [size * factor for factor in level.scale]},
        {"type": "translation", "translation": [size * (factor - 1) / 2 for factor in level.scale]},
    ]
