"""A small scan for every source that plays files or makes its scan up, as options of `[source]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile

from ministream import config
from ministream.source import open_source
from ministream.storage.archive import Archive


def phantom_options(_folder: Path) -> dict[str, Any]:
    return {"rows": 3, "cols": 10, "projections": 7, "flats": 2, "darks": 3}


def dxchange_options(folder: Path) -> dict[str, Any]:
    path = folder / "scan.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, count in (("data", 7), ("data_white", 2), ("data_dark", 3)):
            file[f"exchange/{name}"] = random.integers(100, 4000, (count, 3, 10)).astype(np.uint16)
        file["exchange/theta"] = np.linspace(0, 150, 7)
    return {"file": str(path)}


def nxtomo_options(folder: Path) -> dict[str, Any]:
    path = folder / "scan.nxs"
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry/instrument/detector")
        detector["data"] = np.random.default_rng(0).integers(100, 4000, (12, 3, 10)).astype(np.uint16)
        detector["image_key"] = [2, 2, 2, 1, 1, *[0] * 7]
        file["entry/sample/rotation_angle"] = np.r_[np.zeros(5), np.linspace(0, 150, 7)]
    return {"file": str(path)}


def tiff_options(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    for name, count in (("p", 7), ("flat", 2), ("dark", 3)):
        for k in range(count):
            tifffile.imwrite(folder / f"{name}{k}.tif", random.integers(100, 4000, (3, 10)).astype(np.uint16))
    return {"file": str(folder), "angles": {"step": 25.0}}


def replay_options(folder: Path) -> dict[str, Any]:
    path = folder / "recording.h5"
    example = config.SourceSection(kind="phantom", **phantom_options(folder))
    played = open_source(example, order="sequential", repeat=1)
    with played, Archive(path, dataclasses.replace(played.describe(), truth=None)) as archive:
        for frame in played.frames():
            archive.append(frame)
        archive.dropped = 0
    return {"file": str(path), "speed": "unlimited", "times": "now"}


# A small scan of 7 projections, 2 flats and 3 darks of 3 x 10 pixels; a new source adds its own here.
EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "phantom": phantom_options,
    "dxchange": dxchange_options,
    "nxtomo": nxtomo_options,
    "tiff": tiff_options,
    "replay": replay_options,
}
