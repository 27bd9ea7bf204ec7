"""Atomic file writes: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ministream.errors import StorageError


def part_of(path: Path) -> Path:
    """The temporary name beside `path`; it is hidden, so that no pattern over results matches a partial file."""
    return path.with_name(f".{path.name}.part")


def failed(path: Path, error: Exception) -> StorageError:
    """The error to raise when writing `path` failed: names the file, the cause and the remedy."""
    told, number = getattr(error, "strerror", None) or str(error), getattr(error, "errno", None)
    known = os.strerror(number) if number else ""
    cause = told if told.startswith(known) else known  # HDF5's own text has several lines
    return StorageError(f"{path}: cannot be written: {cause}; free space there or choose another output directory")


def discard(part: Path) -> None:
    """Remove a temporary file; errors are ignored, because a failed disk may not allow it."""
    with contextlib.suppress(OSError):
        part.unlink()


def sync(path: Path) -> None:
    """Force what this machine wrote to `path` (a file or a directory) to stable storage. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(part: Path, path: Path) -> None:
    """Give the finished, synced `part` its final name, durably. Raises OSError."""
    part.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it is renamed to `path` when the block succeeds and removed when it fails.

    Raises StorageError naming the file when the write fails.
    """
    part = part_of(path)
    try:
        yield part
        sync(part)
        commit(part, path)
    except OSError as error:
        raise failed(path, error) from error
    finally:
        discard(part)
