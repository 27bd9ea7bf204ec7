"""A TIFF stack, float32, one page per slice, that ImageJ opens as a hyperstack with voxel size and title."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ministream.storage.exports import Export
from ministream.storage.reader import Volume

FOLDER = False

# Above, offsets of pages do not fit into a TIFF file: ImageJ then finds all images behind the only page.
MOST_BYTES = 4_000_000_000


def write(export: Export, part: Path) -> None:
    """Write slice after slice. Raises OSError."""
    volume = export.volume
    size = 4 * int(np.prod(volume.shape, dtype=np.int64))
    pixel = volume.attributes.get("pixel_size_um")
    with tifffile.TiffWriter(part, imagej=True) as file:
        file.write(
            _slices(volume),
            shape=volume.shape,
            dtype=np.float32,
            resolution=(1.0, 1.0) if pixel is None else (1 / pixel, 1 / pixel),
            metadata=_metadata(export, pixel),
            truncate=size > MOST_BYTES,
        )


def _slices(volume: Volume) -> Iterator[NDArray[np.float32]]:
    for index in range(volume.shape[0]):
        yield volume.plane(0, index)


def _metadata(export: Export, pixel: float | None) -> dict[str, Any]:
    """`Info` is what ImageJ shows as Image > Show Info, `Labels` the subtitles of the slices."""
    provenance, slices = export.provenance, export.volume.shape[0]
    low, high = export.limits
    lines = [f"title: {provenance.title}", *(f"{name}: {value}" for name, value in provenance.details.items())]
    flaw = " INCOMPLETE" if provenance.flaw else ""
    return {
        "axes": "ZYX",
        "spacing": 1.0 if pixel is None else float(pixel),
        "unit": "pixel" if pixel is None else "um",
        "min": low,
        "max": high,
        "Info": "\n".join(lines),
        "Labels": [f"slice {index}{flaw}" for index in range(slices)],
    }
