"""Checkpoints on disk: their format, and reading with any number of ranks.

    DIR/checkpoint-000012/            complete: renamed after all files are written
        rank-0000.bin                 arrays of one rank, one after the other, C order, little endian
        manifest.json                 {"digest", "body"}: position and checksum of each array, and all plain values

An array distributed over ranks has one part per rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from ministream import log
from ministream.errors import InputError, MinistreamError
from ministream.storage.comm import Communicator

_LOG = log.get(__name__)

FORMAT = 2
MANIFEST = "manifest.json"
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayPart:
    """One rank's part of an array: bytes from `offset` of `file`, with `digest` their XXH3.

    It begins at `first` along `axis`; `held` is the distribution over ranks: the same array on all ranks, the rows
    of each slab, or an even share of the rows.
    """

    name: str
    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    held: Literal["whole", "slab", "share"] = "whole"
    axis: int = 0
    first: int = 0
    digest: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stop(self) -> int:
        """The end of the part along `axis`."""
        return self.first + self.shape[self.axis]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its plain `values`, and the parts of each array in rank order."""

    path: Path
    values: Mapping[str, Any]
    parts: Mapping[str, Sequence[ArrayPart]]

    def read(self, slab: slice, share: slice) -> dict[str, Any]:
        """All values and arrays, cut to the rows `slab` and `share` of a rank. Raises InputError naming the file."""
        rows = {"slab": slab, "share": share}
        found = dict(self.values)
        for name, parts in self.parts.items():
            place = parts[0]
            wanted = rows.get(place.held, slice(0, place.stop if place.shape else 0))
            met = [part for part in parts if part.first < wanted.stop and part.stop > wanted.start]
            found[name] = np.concatenate([_cut(self.path, part, wanted) for part in met or parts[:1]], place.axis)
        return found

    def verify(self, number: int, of: int) -> None:
        """Verify the checksums of every `of`-th file from `number` on. Raises InputError naming the file."""
        files = sorted({part.file for parts in self.parts.values() for part in parts})
        for file in files[number::of]:
            for part in sorted((p for ps in self.parts.values() for p in ps if p.file == file), key=_offset):
                _check(self.path, part)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(directory.glob("checkpoint-[0-9]*"), reverse=True)


def open_newest(comm: Communicator, directory: Path) -> Checkpoint:
    """The newest intact checkpoint; collective. Damaged ones are skipped with a warning.

    Raises InputError on every rank when there is none.
    """
    damage = []
    for path in _agreed(comm, checkpoints(directory) if comm.rank == 0 else []):
        failure: MinistreamError | None = None
        try:
            found = _load(path)
            found.verify(comm.rank, comm.size)
        except InputError as error:
            failure = error
        failures = [other for other in comm.allgather(failure) if other is not None]
        if not failures:
            return found
        damage.append(str(failures[0]))
        if comm.rank == 0:
            _LOG.warning("checkpoint %s is damaged and not used: %s", path.name, failures[0])
    told = f"all {len(damage)} are damaged: {'; '.join(damage)}" if damage else "none found"
    absent = InputError(f"{directory}: no checkpoint to resume from ({told}). Start the scan again without --resume.")
    absent.everywhere = True
    raise absent


def _agreed(comm: Communicator, paths: list[Path]) -> list[Path]:
    first: list[Path] = comm.allgather(paths)[0]
    return first


def _load(path: Path) -> Checkpoint:
    try:
        envelope = json.loads((path / MANIFEST).read_text())
        body = envelope["body"]
        if xxhash.xxh3_64_hexdigest(body.encode()) != envelope["digest"]:
            raise InputError(f"{path / MANIFEST}: checksum does not match")
        content = json.loads(body)
    except OSError as error:
        raise InputError(f"{path / MANIFEST}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / MANIFEST}: is damaged: {error}") from error
    if content["format"] != FORMAT:
        raise InputError(f"{path}: has format {content['format']}, this release reads {FORMAT}")
    parts: dict[str, list[ArrayPart]] = {}
    for entry in content["parts"]:
        part = ArrayPart(**{**entry, "shape": tuple(entry["shape"])})
        parts.setdefault(part.name, []).append(part)
    return Checkpoint(path=path, values=content["values"], parts=parts)


def _offset(part: ArrayPart) -> int:
    return part.offset


def _check(folder: Path, part: ArrayPart) -> None:
    digest = xxhash.xxh3_64()
    path, left = folder / part.file, part.nbytes
    try:
        with path.open("rb") as file:
            file.seek(part.offset)
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if left or digest.hexdigest() != part.digest:
        raise InputError(f"{path}: checksum of {part.name} does not match")


def _cut(folder: Path, part: ArrayPart, wanted: slice) -> NDArray[Any]:
    """The entries of this part within `wanted`, an index range over all parts."""
    if not part.nbytes:
        return np.zeros(part.shape, part.dtype)
    path = folder / part.file
    try:
        array = np.memmap(path, part.dtype, "r", part.offset, part.shape)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    where = [slice(None)] * array.ndim
    where[part.axis] = slice(max(wanted.start - part.first, 0), wanted.stop - part.first)
    return np.array(array[tuple(where)])
