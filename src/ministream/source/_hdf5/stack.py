"""Images in an HDF5 dataset of any layout; see `_images` for the order in which they are read."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.model import Slab
from ministream.source._hdf5.failures import reading
from ministream.source._watch import Unchanged


class Stack:
    """Images [count, rows, cols] in one dataset; `axes` are the dataset's axes that hold image, row and column.

    Raises InputError unless the dataset holds images of real numbers, and what HDF5 needs to read them is installed.
    """

    def __init__(
        self, path: Path, dataset: h5py.Dataset, *, axes: Sequence[int] = (0, 1, 2), unsigned: bool = False,
        watched: Sequence[Unchanged] = (),
    ) -> None:  # fmt: skip
        # its name is a question to HDF5, and every image would ask it
        self.path, self.name, self._where = path, f"{path}: {dataset.name}", str(dataset.name)
        self._dataset, self._axes, self._unsigned = dataset, tuple(axes), unsigned
        self._watched = watched
        shape = self._checked_shape(dataset)
        self.count, self.rows, self.cols = (shape[axis] for axis in self._axes)
        dtype = dataset.dtype.newbyteorder("=")
        self.dtype: np.dtype[Any] = np.dtype(f"u{dtype.itemsize}") if unsigned and dtype.kind == "i" else dtype
        self._space = dataset.id.get_space()
        self._memory: tuple[tuple[tuple[int, ...], np.dtype[Any]], Any, Any] | None = None
        self._chunk = dataset.chunks[self._axes[0]] if dataset.chunks else 1

    def block(self, index: int) -> tuple[int, int]:
        """The images that one chunk holds."""
        first = index // self._chunk * self._chunk
        return first, min(first + self._chunk, self.count)

    def read(self, target: NDArray[Any], first: int, rows: Slab) -> None:
        """Fill `target` [n, rows.rows, cols], every chunk unpacked once. Raises InputError, also for a changed file."""
        wanted = (slice(first, first + len(target)), rows.slice, slice(0, self.cols))
        selection = tuple(wanted[self._axes.index(axis)] for axis in range(3))
        with reading(self.path, f"{self._where}, image {first}"):
            if self._axes == (0, 1, 2) and not self._unsigned:
                self._read_as_stored(target, first, rows)
            else:
                values = self._dataset[selection].transpose(self._axes)
                target[:] = values.astype(values.dtype.newbyteorder("=")).view(self.dtype) if self._unsigned else values
        for file in self._watched:
            file.check()

    def _read_as_stored(self, target: NDArray[Any], first: int, rows: Slab) -> None:
        """Like `read_direct`, without creating a selection for every image."""
        if self._memory is None or self._memory[0] != (target.shape, target.dtype):
            space, kind = h5py.h5s.create_simple(target.shape), h5py.h5t.py_create(target.dtype)
            self._memory = ((target.shape, target.dtype), space, kind)
        _, space, kind = self._memory
        self._space.select_hyperslab((first, rows.first, 0), target.shape)
        self._dataset.id.read(space, self._space, target, kind)

    def unwritten(self) -> frozenset[int]:
        """The images of which the file holds no storage: HDF5 reads them as the fill value."""
        with reading(self.path, f"{self._dataset.name}, its storage"):
            dataset = self._dataset
            if not dataset.chunks:
                elsewhere = dataset.is_virtual or dataset.id.get_create_plist().get_external_count()
                kept = dataset.id.get_storage_size() or elsewhere
                return frozenset() if kept else frozenset(range(self.count))
            grid = [range(0, size, chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
            if dataset.id.get_num_chunks() >= int(np.prod([len(steps) for steps in grid])):
                return frozenset()
            return self._in_absent_chunks(grid)

    def _in_absent_chunks(self, grid: Sequence[range]) -> frozenset[int]:
        others = [steps for axis, steps in enumerate(grid) if axis != self._axes[0]]
        absent: set[int] = set()
        for first in grid[self._axes[0]]:
            corners = [list(corner) for corner in np.ndindex(*(len(steps) for steps in others))]
            for corner in corners:
                at = [steps[k] for steps, k in zip(others, corner, strict=True)]
                at.insert(self._axes[0], first)
                if self._dataset.id.get_chunk_info_by_coord(tuple(at)).byte_offset is None:
                    absent.update(range(*self.block(first)))
                    break
        return frozenset(absent)

    def _checked_shape(self, dataset: h5py.Dataset) -> tuple[int, ...]:
        if not is_real(dataset):
            raise InputError(f"{self.name} holds {dataset.dtype}: pixels must be integers or floats of at most 64 bits")
        shape = dataset.shape or ()
        if len(shape) != 3:
            raise InputError(f"{self.name} has shape {shape}: it must be [image, row, column]")
        if 0 in shape:
            raise InputError(f"{self.name} has shape {shape}: it holds no pixels")
        _load_filters(dataset, self.name)
        return tuple(shape)


def is_real(dataset: h5py.Dataset) -> bool:
    """Whether a dataset holds integers or floats that NumPy has everywhere."""
    return dataset.dtype.kind in "iuf" and dataset.dtype.itemsize <= 8


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
