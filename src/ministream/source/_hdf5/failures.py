"""Converts h5py's errors to InputError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ministream.errors import InputError


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Convert an error of h5py while it reads `what` from the file `path` into an InputError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
        remedy = "the file is damaged or cut short, or a link in it leads nowhere"
        raise InputError(f"{path}: {what} cannot be read: {error}: {remedy}") from error
    except TypeError as error:
        raise InputError(f"{path}: {what} is of an HDF5 type that cannot be read: {error}") from error
