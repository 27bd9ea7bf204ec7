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


def write_stack(
    path: Path,
    slices: NDArray[np.float32],
    *,
    parameter: str,
    values: Sequence[float],
    row: int,
    config: Mapping[str, Any],
) -> Path:
    """Write `slices` [value, row, col] to /data and the `values` of `parameter` to /values; returns the path.

    `row` is the detector row of the slices, `config` the settings that they share. Raises StorageError.
    """
    with atomic.replacing(path) as part, h5py.File(part, "w") as file:
        file["data"] = slices
        file["values"] = np.array(values, np.float64)
        file["data"].attrs.update({"units": "1/pixel", "dimensions": "value, row, col", "detector_row": row})
        file["values"].attrs["parameter"] = parameter
        file.attrs["config"] = json.dumps(config)
    return path
