"""Statistics kept for every projection: a few numbers per sampled detector row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

MOST_FRAMES = 100_000
"""Maximum number of projections of a scan; later ones are not checked."""
_FIRST_ROOM = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectionTable:
    """One entry per projection, means over sampled rows; values are line integrals unless stated.

    `position`: the number in the recording, 0 where unknown. `mean`: over the columns; `left` and `right`: over the
    columns at each edge; `bright` and `saturated`: fractions of the pixels below -0.1, and at the maximum of their
    dtype. `repeats`: whether all sampled rows are exactly those of the projection before. `blank_rows`: the number of
    rows of the whole detector that hold one value.
    """

    index: NDArray[np.int64]
    angle_rad: NDArray[np.float64]
    position: NDArray[np.float64]
    mean: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    bright: NDArray[np.float64]
    saturated: NDArray[np.float64]
    repeats: NDArray[np.bool_]
    blank_rows: NDArray[np.int64]

    def __len__(self) -> int:
        return self.index.size

    def without_edge(self, side: Literal["left", "right"]) -> ProjectionTable:
        """A copy that treats this edge as air: in a half acquisition the sample extends beyond it."""
        air = np.zeros_like(self.left)
        return dataclasses.replace(self, left=air) if side == "left" else dataclasses.replace(self, right=air)

    def only(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> ProjectionTable:
        """The projections that are `kept`: a mask [projections], or their places in the wanted order."""
        return ProjectionTable(**{name: getattr(self, name)[kept] for name in ProjectionTable.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Of some projections and sampled rows, [projections, rows] each: Σ p, Σ p v and Σ p v² with v the column counted
    from the middle, and the means of p at both edges; `angle_rad` [projections].
    """

    angle_rad: NDArray[np.float64]
    total: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SkippedProjection:
    """A projection that was not used: its index, and its number in the recording, 0 where unknown."""

    index: int
    position: float


class ProjectionRecord:
    """The measures of the projections of one slab, in order of arrival; repeated ones count once.

    A measure consists of (Σ p, Σ p v, left edge, right edge, bright pixels, saturated pixels, Σ p v²), one row per
    sampled detector row; v is the column counted from the middle.
    """

    def __init__(self, *, rows: int, cols: int) -> None:
        self._cols = cols
        self._place: dict[int, int] = {}
        self._index = np.zeros(_FIRST_ROOM, np.int64)
        self._angle_rad, self._position = np.zeros(_FIRST_ROOM), np.zeros(_FIRST_ROOM)
        self._measures = np.zeros((_FIRST_ROOM, rows, 7), np.float32)
        self._blank_rows = np.zeros(_FIRST_ROOM, np.int64)

    def add(
        self, index: int, angle_rad: float, position: float, measures: NDArray[np.float32], blank_rows: int = 0
    ) -> None:
        """Keep the measures [rows, 7] of one projection, and how many rows of the slab hold one value."""
        place = self._place.setdefault(index, len(self._place))
        if place >= MOST_FRAMES:
            self._place.pop(index)
            return
        if place >= self._index.size:
            self._grow()
        self._index[place], self._angle_rad[place], self._position[place] = index, angle_rad, position
        self._measures[place] = measures
        self._blank_rows[place] = blank_rows

    @classmethod
    def of(
        cls,
        index: NDArray[np.int64],
        angle_rad: NDArray[np.float64],
        position: NDArray[np.float64],
        measures: NDArray[np.float32],
        blank_rows: NDArray[np.int64],
        *,
        cols: int,
    ) -> Self:
        """A record of the `measures` [projections, rows, 7] and `blank_rows` [projections] of an earlier one."""
        record = cls(rows=measures.shape[1], cols=cols)
        blank = blank_rows.tolist()
        for each in zip(index.tolist(), angle_rad.tolist(), position.tolist(), measures, blank, strict=True):
            record.add(*each)
        return record

    @property
    def measures(self) -> NDArray[np.float32]:
        """[projections, rows, 7]."""
        return self._measures[: self.count]

    @property
    def count(self) -> int:
        """Projections kept."""
        return len(self._place)

    @property
    def index(self) -> NDArray[np.int64]:
        """[projections]."""
        return self._index[: self.count]

    @property
    def angle_rad(self) -> NDArray[np.float64]:
        """[projections]."""
        return self._angle_rad[: self.count]

    @property
    def position(self) -> NDArray[np.float64]:
        """[projections]."""
        return self._position[: self.count]

    def level(self, first: int) -> tuple[float, int]:
        """Σ of the mean line integral of the projections from `first` on, and their number."""
        totals = self._measures[first : self.count, :, 0]
        rows = totals.shape[1]
        return float(totals.sum(dtype=np.float64)) / (max(rows, 1) * self._cols), len(totals) if rows else 0

    @property
    def blank_rows(self) -> NDArray[np.int64]:
        """[projections]."""
        return self._blank_rows[: self.count]

    def moments(self, kept: NDArray[np.bool_]) -> Moments:
        """The moments of the projections that are `kept`."""
        measures = self._measures[: self.count][kept].astype(np.float64)
        return Moments(
            angle_rad=self.angle_rad[kept],
            total=measures[..., 0],
            first=measures[..., 1],
            second=measures[..., 6],
            left=measures[..., 2],
            right=measures[..., 3],
        )

    def sums(self) -> NDArray[np.float64]:
        """To be summed over ranks, [projections, 9]: over the sampled rows the means of a table, the rows like those of
        the projection before and unlike them, and the sampled rows; and the blank rows.
        """
        measures = self._measures[: self.count].astype(np.float64)
        total = measures[:, :, [0, 2, 3, 4, 5]].sum(axis=1)
        total[:, [0, 3, 4]] /= self._cols
        same = np.zeros(measures.shape[:2], bool)
        same[1:] = (measures[1:] == measures[:-1]).all(axis=2)
        alike = (same & measures[:, :, :2].any(axis=2)).sum(axis=1)
        rows = np.full(self.count, measures.shape[1])
        return np.column_stack([total, alike, (~same).sum(axis=1), rows, self.blank_rows])

    def table(self, sums: NDArray[np.float64]) -> ProjectionTable:
        """The statistics over all ranks, from the sum of `sums` over the ranks."""
        mean, left, right, bright, saturated = (sums[:, :5] / sums[:, 7:8]).T
        return ProjectionTable(
            index=self.index.copy(),
            angle_rad=self.angle_rad.copy(),
            position=self.position.copy(),
            mean=mean,
            left=left,
            right=right,
            bright=bright,
            saturated=saturated,
            repeats=(sums[:, 5] > 0) & (sums[:, 6] == 0),
            blank_rows=sums[:, 8].astype(np.int64),
        )

    def _grow(self) -> None:
        self._index = np.concatenate([self._index, np.zeros_like(self._index)])
        self._angle_rad = np.concatenate([self._angle_rad, np.zeros_like(self._angle_rad)])
        self._position = np.concatenate([self._position, np.zeros_like(self._position)])
        self._measures = np.concatenate([self._measures, np.zeros_like(self._measures)])
        self._blank_rows = np.concatenate([self._blank_rows, np.zeros_like(self._blank_rows)])
