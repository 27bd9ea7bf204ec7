"""The order in which a dataset is published on the DAQ wire of aps-mini-apps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ministream.model import Frame, FrameKind

ORIGINAL_GROUP = 16
"""Images per pass of the original's interleaving."""


def dataset_order(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Flats, then darks, then projections, as the original numbers them; the flats and darks are kept meanwhile."""
    calibration: list[Frame] = []
    for frame in frames:
        if frame.kind is not FrameKind.PROJECTION:
            calibration.append(frame)
            continue
        yield from _flats_first(calibration)
        calibration.clear()
        yield frame
    yield from _flats_first(calibration)


def original_order(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Interleaved as `DAQStream.py` does it: passes of 16 images from all over the dataset, which is kept in memory."""
    dataset = list(dataset_order(frames))
    passes = math.ceil(len(dataset) / ORIGINAL_GROUP)
    for first in range(passes):
        yield from dataset[first::passes]


def _flats_first(calibration: list[Frame]) -> list[Frame]:
    return sorted(calibration, key=lambda frame: frame.kind is not FrameKind.FLAT)
