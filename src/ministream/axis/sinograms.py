"""Some detector rows of every projection, kept for as long as the axis may be looked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 16
MOST_PROJECTIONS = 4096


def sampled_rows(rows: int) -> NDArray[np.intp]:
    """The detector rows to look at, evenly spread; the same for any number of ranks."""
    count = min(rows, MOST_ROWS)
    return np.unique(np.round((np.arange(count) + 0.5) * rows / count - 0.5).astype(np.intp))


class SampledSinograms:
    """Line integrals of `count` detector rows, up to MOST_PROJECTIONS projections; later ones are left out."""

    def __init__(self, count: int, cols: int) -> None:
        self._pixels = np.zeros((count, 0, cols), np.float32)
        self._angles_rad: list[float] = []
        self._place_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._angles_rad)

    def add(self, index: int, angle_rad: float, pixels: NDArray[np.float32]) -> None:
        """Keep projection `index`, [cols, count]; a repeated one replaces the earlier."""
        place = self._place_of.setdefault(index, len(self))
        if place == MOST_PROJECTIONS:
            del self._place_of[index]
            return
        if place == len(self):
            self._angles_rad.append(angle_rad)
        if place == self._pixels.shape[1]:
            self._grow()
        self._pixels[:, place] = pixels.T
        self._angles_rad[place] = angle_rad

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        """[projections], in order of arrival."""
        return np.array(self._angles_rad)

    @property
    def pixels(self) -> NDArray[np.float32]:
        """[count, projections, cols], a view."""
        return self._pixels[:, : len(self)]

    def _grow(self) -> None:
        count, held, cols = self._pixels.shape
        larger = np.zeros((count, max(64, 2 * held), cols), np.float32)
        larger[:, :held] = self._pixels
        self._pixels = larger
