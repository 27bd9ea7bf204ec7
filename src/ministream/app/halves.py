"""Two reconstructions of one recorded scan, from its even and its odd projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ministream.app.trying import RecordedRow, read_rows, row_slice
from ministream.config import Config
from ministream.errors import ConfigError, InputError
from ministream.model import FrameKind, Scan

Image = NDArray[np.float32]


def half_sets(settings: Config, choose: Callable[[Scan], Sequence[int]]) -> tuple[list[int], Image, Image]:
    """The detector rows that `choose` selects, and their slices [row, n, n] from even and from odd projections.

    Both have all flats and darks. Raises ConfigError for an axis that is not known, InputError for a scan that cannot
    be read or has fewer than two projections.
    """
    if settings.recon.finds_axis:
        raise ConfigError("recon.axis = auto: halves have a known axis. Give a column with --set recon.axis=COLUMN")
    rows = read_rows(settings, choose)
    first, second = (np.stack([row_slice(settings, _half(row, which)) for row in rows]) for which in (0, 1))
    return [row.row for row in rows], first, second


def _half(recorded: RecordedRow, which: int) -> RecordedRow:
    """Every second projection in the order of the scan, and all else."""
    projections = [frame for frame in recorded.frames if frame[0] is FrameKind.PROJECTION]
    if len(projections) < 2:
        raise InputError(f"scan {recorded.scan.scan_id} has {len(projections)} projection, halves need two or more")
    others = [frame for frame in recorded.frames if frame[0] is not FrameKind.PROJECTION]
    return dataclasses.replace(recorded, frames=[*others, *projections[which::2]])
