"""Slices for several values of one parameter, in one HDF5 file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream import atomic
from ministream.model import to_per_cm
from ministream.storage.schema import attenuation


def write_stack(
    path: Path,
    slices: NDArray[np.float32],
    *,
    parameter: str,
    values: Sequence[float],
    row: int,
    pixel_size_um: float | None,
    config: Mapping[str, Any],
) -> Path:
    """Write `slices` [value, row, col] to /data and the `values` of `parameter` to /values; returns the path.

    `slices` are attenuation per pixel; the file holds 1/cm where the pixel size is known. `row` is the detector row of
    the slices, `config` the settings that they share. Raises StorageError.
    """
    with atomic.replacing(path) as part, h5py.File(part, "w", locking=False) as file:
        file["data"] = slices * np.float32(to_per_cm(pixel_size_um))
        file["values"] = np.array(values, np.float64)
        file["data"].attrs.update(attenuation(pixel_size_um) | {"dimensions": "value, row, col", "detector_row": row})
        file["values"].attrs["parameter"] = parameter
        file.attrs["config"] = json.dumps(config)
    return path
