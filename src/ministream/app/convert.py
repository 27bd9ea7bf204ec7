"""A volume in the format of another program."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ministream import atomic
from ministream.errors import ConfigError, InputError
from ministream.monitor import grey_window
from ministream.storage import FINAL, Volume, snapshots
from ministream.storage.exports import Export, format_of, open_format
from ministream.storage.provenance import Provenance

AXES = "zyx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What the user wants: None stands for the middle plane, the plane's own grey levels, a process per core."""

    plane: str = "z"
    index: int | None = None
    limits: tuple[float, float] | None = None
    fps: float = 5.0
    workers: int | None = None
    dataset: str = "/data"
    overwrite: bool = False


def convert(source: Path, out: Path, wanted: Conversion) -> Provenance:
    """Write the volume `source`, or recon.h5 in that folder, as `out`, whose suffix names the format.

    `out` appears whole, or not at all. Raises ConfigError for a format that is not known or not installed, a plane that
    the volume lacks, and an `out` that exists and must not be replaced; InputError for a volume that cannot be read;
    StorageError for an `out` that cannot be written.
    """
    name = format_of(out)
    module = open_format(name)
    with ExitStack() as stack:
        path = source / FINAL if source.is_dir() else source
        volume = stack.enter_context(Volume(path, wanted.dataset))
        _check_free(out, folder=module.FOLDER, overwrite=wanted.overwrite)
        axis, index = _plane(volume, wanted)
        export = Export(
            volume=volume,
            moments=[*_moments(stack, volume), volume],
            provenance=Provenance.of(volume),
            axis=axis,
            index=index,
            limits=_limits(volume, wanted, axis, index),
            fps=wanted.fps,
            workers=wanted.workers or len(os.sched_getaffinity(0)),
        )
        with (_replacing_folder if module.FOLDER else atomic.replacing)(out) as part:
            module.write(export, part)
    return export.provenance


def _plane(volume: Volume, wanted: Conversion) -> tuple[int, int]:
    if wanted.plane not in tuple(AXES):
        raise ConfigError(f"--plane {wanted.plane}: expected z (a slice), y (an image row) or x (an image column)")
    axis = AXES.index(wanted.plane)
    size = volume.shape[axis]
    index = size // 2 if wanted.index is None else wanted.index
    if not 0 <= index < size:
        raise ConfigError(f"--index {index}: {volume.path} has planes 0 to {size - 1} along {wanted.plane}")
    return axis, index


def _limits(volume: Volume, wanted: Conversion, axis: int, index: int) -> tuple[float, float]:
    if wanted.limits is None:
        return grey_window([volume.plane(axis, index)])
    low, high = wanted.limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"--range {low:g}:{high:g}: expected two numbers, the smaller one first, such as 0:2.5")
    return wanted.limits


def _moments(stack: ExitStack, volume: Volume) -> list[Volume]:
    """The snapshots beside the final volume, oldest first. Raises InputError for one of another shape."""
    if volume.path.name != FINAL:
        return []
    found = [stack.enter_context(Volume(path, volume.dataset)) for path in snapshots(volume.path.parent)]
    for moment in found:
        if moment.shape != volume.shape:
            raise InputError(
                f"{moment.path} is {list(moment.shape)} and {volume.path} is {list(volume.shape)} [slice, row, col]: "
                "they are not from one run. Convert a copy of the volume in a folder of its own"
            )
    return found


def _check_free(out: Path, *, folder: bool, overwrite: bool) -> None:
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}. Create it first")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise ConfigError(f"{out} exists. Choose another name, or replace it with --overwrite")
    if folder and not (out / "zarr.json").is_file():
        raise ConfigError(f"{out} exists and is not a Zarr folder, which --overwrite replaces. Choose another name")
    if not folder and out.is_dir():
        raise ConfigError(f"{out} is a folder, which --overwrite does not replace by a file. Choose another name")


@contextlib.contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """As atomic.replacing, of a folder: an older one is moved aside, and removed when the new one has its name."""
    part, old = atomic.part_of(path), path.with_name(f".{path.name}.old")
    try:
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)
        yield part
        for file in (*part.rglob("*"), part):
            atomic.sync(file)
        if path.exists():
            path.replace(old)
        atomic.commit(part, path)
    except OSError as error:
        raise atomic.failed(path, error) from error
    finally:
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)
