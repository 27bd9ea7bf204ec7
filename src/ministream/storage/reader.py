"""Reads volumes, also those of other programs; errors name the file and the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream.errors import InputError
from ministream.model import Slab
from ministream.storage.schema import DATASET
from ministream.storage.writer import FINAL


class Volume:
    """An open volume [slice, row, col]; planes are read on demand, never the whole volume.

    `per_pixel` is the factor from its values to attenuation per pixel; 1 for a file that does not say its unit.
    Raises InputError when the file is missing, truncated or not HDF5, or the dataset is absent or not a
    three-dimensional array of real numbers. A context manager.
    """

    def __init__(self, path: Path, dataset: str = DATASET) -> None:
        self.path, self.dataset = path, dataset
        self._file = _open(path)
        try:
            self._data = _dataset(self._file, path, dataset)
            self.attributes: dict[str, Any] = dict(self._file.attrs) | dict(self._data.attrs)
        except BaseException:
            self._file.close()
            raise
        self.shape: tuple[int, int, int] = self._data.shape
        self.per_pixel = float(self.attributes.get("scale_to_per_pixel", 1.0))

    def plane(self, axis: int, index: int) -> NDArray[np.float32]:
        """The plane at `index` along axis 0 (a slice), 1 (an image row) or 2 (an image column)."""
        where: list[Any] = [slice(None)] * 3
        where[axis] = index
        return self._read(tuple(where))

    def slab(self, slab: Slab) -> NDArray[np.float32]:
        """The slices of one rank, [slab.rows, row, col]. Raises InputError when the volume has fewer."""
        if slab.stop > self.shape[0]:
            raise InputError(f"{self.path}: has {self.shape[0]} slices, expected at least {slab.stop}")
        return self._read((slab.slice,))

    def block(self, slices: slice, rows: slice, cols: slice) -> NDArray[np.float32]:
        """A part of the volume, [slice, row, col], cut off where the volume ends."""
        return self._read((slices, rows, cols))

    def _read(self, where: tuple[Any, ...]) -> NDArray[np.float32]:
        try:
            values: NDArray[np.float32] = np.asarray(self._data[where], np.float32)
        except OSError as error:
            raise InputError(f"{self.path}: {self._data.name} cannot be read, the file is damaged: {error}") from error
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_volume(path: Path, dataset: str = DATASET, slab: Slab | None = None) -> NDArray[np.float32]:
    """A whole volume, or one slab of it, [slice, row, col] float32. Raises InputError."""
    with Volume(path, dataset) as volume:
        return volume.slab(slab or Slab(0, volume.shape[0]))


def snapshots(directory: Path) -> list[Path]:
    """The snapshots in a folder of results, in the order in which they were written."""
    found = directory.glob(f"[0-9][0-9][0-9][0-9][0-9][0-9]*-{FINAL}")
    return sorted(path for path in found if path.is_file())


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5, it is truncated or of another format: {error}") from error


def _dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    try:
        data = file.get(name)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: {name} cannot be opened, the file is damaged: {error}") from error
    if not isinstance(data, h5py.Dataset):
        known = ", ".join(_datasets(file)) or "none"
        raise InputError(f"{path}: no dataset {name}; its three-dimensional datasets: {known} (choose with --dataset)")
    if data.ndim != 3 or data.dtype.kind not in "fiu" or 0 in data.shape:
        raise InputError(f"{path}: {name} is {data.dtype} {list(data.shape)}, not a volume [slice, row, col]")
    return data


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 3:
            found.append(f"/{name}")

    file.visititems(visit)
    return found
