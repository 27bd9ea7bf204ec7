"""A contact sheet: one slice for each value of a parameter, in one grey scale, each with its value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ministream.monitor._figure import INK, grey_window, new_figure, save

MOST_COLS = 6


def draw(slices: NDArray[np.float32], labels: Sequence[str], path: Path, *, title: str) -> Path:
    """Draw `slices` [value, row, col] with their `labels` to a PNG; returns its path.

    Raises StorageError, and ConfigError without matplotlib.
    """
    cols = min(len(labels), MOST_COLS, math.ceil(math.sqrt(len(labels))))
    rows = math.ceil(len(labels) / cols)
    figure = new_figure(3.2 * cols, 3.4 * rows + 0.5)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    grid = figure.subplots(rows, cols, squeeze=False)
    low, high = grey_window(list(slices))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label in zip(grid.flat, slices, labels, strict=False):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(label, fontsize=10, color=INK)
    save(figure, path)
    return path
