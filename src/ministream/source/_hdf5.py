"""Reading scans from HDF5 files, image by image; every failure names the file, the dataset and the remedy."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream import log
from ministream.errors import InputError
from ministream.model import Slab

_LOG = log.get(__name__)

# The images of one chunk are read together up to this size.
MAX_BLOCK_BYTES = 64 << 20
MAX_TEXT = 256
MAX_LISTED = 10


class DataFile:
    """An HDF5 file open for reading."""

    def __init__(self, path: Path) -> None:
        """Raises InputError that tells a missing file from one that is unreadable, not HDF5, or cut short."""
        self.path = path
        self._file = _open(path)

    def close(self) -> None:
        """Close the file; harmless when called again."""
        self._file.close()

    def contents(self) -> str:
        """What the file has at its root, for messages."""
        with self.reading("the root group"):
            return ", ".join(sorted(self._file)[:MAX_LISTED]) or "nothing"

    def find(self, *names: str) -> h5py.Dataset | None:
        """The first of these datasets that the file has.

        Raises InputError where the name stands for a group, or for a dataset that is broken or of an unknown type.
        """
        for name in names:
            with self.reading(name):
                if self._file.get(name, getlink=True) is None:
                    continue
                item = self._file[name]
                if isinstance(item, h5py.Dataset) and item.dtype is not None:
                    return item
            raise InputError(f"{self.path}: {name} is a group where a dataset is needed")
        return None

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what h5py raises while it reads `what` into an InputError."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
            remedy = "the file is damaged or cut short, or a link in it leads nowhere"
            raise InputError(f"{self.path}: {what} cannot be read: {error}: {remedy}") from error
        except TypeError as error:
            raise InputError(f"{self.path}: {what} is of an HDF5 type that cannot be read: {error}") from error

    def values(self, dataset: h5py.Dataset) -> NDArray[np.float64]:
        """A small dataset of real numbers as a flat array. Raises InputError for anything else."""
        if not _is_real(dataset):
            raise InputError(f"{self.path}: {dataset.name} holds {dataset.dtype} where numbers are needed")
        with self.reading(dataset.name):
            return np.asarray(dataset[()], dtype=np.float64).ravel()

    def number(self, *names: str) -> float | None:
        """The first number of the first of these datasets; None where it is absent, empty or no number."""
        dataset = self.find(*names)
        if dataset is None or not dataset.size or not _is_real(dataset):
            return None
        return float(self.values(dataset)[0])

    def quantity(self, name: str, factors: Mapping[str, float]) -> float | None:
        """A positive number times the factor of its `units` attribute; None where it is absent or unclear.

        Units are not guessed: a number without units that `factors` knows is left out with a warning.
        """
        value = self.number(name)
        if value is None:
            return None
        units = self.attribute(name, "units").lower()
        if units not in factors or not math.isfinite(value) or value <= 0:
            _LOG.warning(
                "%s: %s = %g %s is left out: not positive, or its units are unknown", self.path, name, value, units
            )
            return None
        return value * factors[units]

    def attribute(self, name: str, key: str) -> str:
        """A text attribute of a dataset that exists, empty where there is none."""
        with self.reading(f"{name} attribute {key}"):
            return _as_text(self._file[name].attrs.get(key, ""))

    def text(self, name: str) -> str:
        """A text dataset, empty where it is absent or holds no text."""
        dataset = self.find(name)
        if dataset is None or not dataset.size:
            return ""
        with self.reading(name):
            return _as_text(dataset[()])

    def stack(self, dataset: h5py.Dataset) -> Stack:
        """A dataset of images. Raises InputError unless it is [image, row, column] of real numbers, and not empty."""
        where = f"{self.path}: {dataset.name}"
        if not _is_real(dataset):
            raise InputError(f"{where} holds {dataset.dtype}: pixels must be integers or floats of at most 64 bits")
        shape = dataset.shape or ()
        if len(shape) != 3:
            raise InputError(f"{where} has shape {shape}: it must be [image, row, column]")
        if 0 in shape:
            raise InputError(f"{where} has shape {shape}: it holds no pixels")
        _load_filters(dataset, where)
        return Stack(self, dataset)


class Stack:
    """Images [count, rows, cols] in a file, read when asked for."""

    def __init__(self, file: DataFile, dataset: h5py.Dataset) -> None:
        self._file = file
        self._dataset = dataset
        self.name: str = dataset.name
        self.count, self.rows, self.cols = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype.newbyteorder("=")

    def images(self, indices: Iterable[int], rows: Slab, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """The rows [rows.rows, cols] of these images in `dtype`, C order, each an array of its own.

        A chunk that holds several images is read and unpacked once for all that follow each other. Raises InputError.
        """
        length = self._images_at_once(rows.rows * self.cols * dtype.itemsize)
        first, block = -1, np.empty((0, rows.rows, self.cols), dtype=dtype)
        for index in indices:
            if index // length * length != first:
                first = index // length * length
                stop = min(first + length, self.count)
                with self._file.reading(f"{self.name}, image {index}"):
                    block = np.empty((stop - first, rows.rows, self.cols), dtype=dtype)
                    self._dataset.read_direct(block, np.s_[first:stop, rows.slice])
            yield block[index - first].copy() if length > 1 else block[0]

    def _images_at_once(self, image_bytes: int) -> int:
        chunks = self._dataset.chunks
        return min(chunks[0], max(1, MAX_BLOCK_BYTES // image_bytes)) if chunks else 1


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a directory where an HDF5 file is needed")
    try:
        with path.open("rb"):
            pass
        if h5py.is_hdf5(path):
            return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error}{_hint(str(error))}") from error
    raise InputError(f"{path}: is not an HDF5 file")


def _hint(message: str) -> str:
    if "truncated" in message:
        return ": the file was cut short, copy it again"
    if "lock" in message:
        return ": is it still being written? If the file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
    return ""


def _is_real(dataset: h5py.Dataset) -> bool:
    return dataset.dtype.kind in "iuf" and dataset.dtype.itemsize <= 8


def _as_text(value: Any) -> str:
    """The first element of a value as h5py returns text, in any of its forms; empty for what is no text."""
    first = value.flat[0] if isinstance(value, np.ndarray) and value.size else value
    if isinstance(first, bytes):
        first = first.decode("utf-8", errors="replace")
    return "".join(filter(str.isprintable, first)).strip()[:MAX_TEXT] if isinstance(first, str) else ""


def _load_filters(dataset: h5py.Dataset, where: str) -> None:
    """Make the dataset's compression readable, from the hdf5plugin package where HDF5 lacks it."""
    if _missing_filters(dataset) and importlib.util.find_spec("hdf5plugin"):
        importlib.import_module("hdf5plugin")
    if missing := _missing_filters(dataset):
        raise InputError(f"{where} is compressed with {missing}: install the codecs, pip install 'ministream[codecs]'")


def _missing_filters(dataset: h5py.Dataset) -> str:
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(i) for i in range(created.get_nfilters())]
    return ", ".join(f"HDF5 filter {code}" for code, *_ in filters if not h5py.h5z.filter_avail(code))
