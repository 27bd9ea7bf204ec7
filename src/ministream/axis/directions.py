"""Which projections mirror each other, and which cover half a turn evenly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TURN_RAD = 2 * np.pi
LARGEST_STEP_RAD = np.deg2rad(5)
"""Between neighbours farther apart than this, a projection cannot be interpolated."""
FEWEST_PROJECTIONS = 16
UNEVEN = 3.0
"""Half a turn is covered where no step exceeds the usual one by this factor."""
SEAM = (0.4, 1.6)
"""The step from the last projection to the first one's mirror image, in usual steps."""
MOST_PAIRS = 256

_SAME_RAD = 1e-7


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorPairs:
    """Projections `direct` [pairs], and what their mirror images are made of: (1 - weight) `before` + weight `after`.

    `before` and `after` are the neighbours of the opposite direction; a weight outside [0, 1] extrapolates.
    """

    direct: NDArray[np.intp]
    before: NDArray[np.intp]
    after: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def count(self) -> int:
        return self.direct.size


def mirror_pairs(angles_rad: NDArray[np.float64]) -> MirrorPairs:
    """The pairs 180 degrees apart, at most MOST_PAIRS, evenly spread.

    Where no opposite direction lies between two projections, those that lie one step beyond the last are extrapolated:
    a scan of half a turn without its end has no other pair.
    """
    turn = np.mod(angles_rad, TURN_RAD)
    order = np.argsort(turn, kind="stable")
    found = [pair for i in range(turn.size) if (pair := _opposite(turn, order, i)) is not None]
    kept = [pair for pair in found if not pair[-1]] or found
    if len(kept) > MOST_PAIRS:
        kept = [kept[k] for k in np.linspace(0, len(kept) - 1, MOST_PAIRS).astype(int)]
    columns = list(zip(*kept, strict=True)) or [(), (), (), (), ()]
    direct, before, after = (np.array(column, np.intp) for column in columns[:3])
    return MirrorPairs(direct=direct, before=before, after=after, weight=np.array(columns[3], np.float32))


def _opposite(turn: NDArray[np.float64], order: NDArray[np.intp], i: int) -> tuple[int, int, int, float, bool] | None:
    """(i, before, after, weight, extrapolated) for projection i; None without neighbours."""
    count, aim = turn.size, float(np.mod(turn[i] + np.pi, TURN_RAD))
    ahead = int(np.searchsorted(turn[order], aim - _SAME_RAD)) % count
    low, high = int(order[ahead - 1]), int(order[ahead])
    short, beyond = float(np.mod(aim - turn[low], TURN_RAD)), float(np.mod(turn[high] - aim + _SAME_RAD, TURN_RAD))
    if beyond <= 2 * _SAME_RAD:
        return i, high, high, 0.0, False
    if short + beyond <= LARGEST_STEP_RAD:
        return i, low, high, short / (short + beyond), False
    for near, far, missing in ((low, order[ahead - 2], short), (high, order[(ahead + 1) % count], beyond)):
        step = abs(float(np.mod(turn[near] - turn[far] + np.pi, TURN_RAD) - np.pi))
        if _SAME_RAD < step <= LARGEST_STEP_RAD and missing <= SEAM[1] * step:
            return i, near, int(far), -missing / step, True
    return None


def half_turn(angles_rad: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float32]] | None:
    """Projections that cover half a turn in even steps, [steps], and None where the angles do not.

    Step k is (1 - weight) p[first] + weight p[first's successor]: returned are the projections in order of their
    angles, and for each step its position among them, a whole number where the angles are even already.
    """
    turn = np.mod(angles_rad, TURN_RAD)
    order = np.argsort(turn, kind="stable")
    gaps = np.diff(np.append(turn[order], turn[order[0]] + TURN_RAD)) if order.size else np.zeros(0)
    if order.size < FEWEST_PROJECTIONS:
        return None
    order = np.roll(order, -int(gaps.argmax()) - 1)
    along = np.mod(turn[order] - turn[order[0]], TURN_RAD)
    distinct = np.append(True, np.diff(along) > _SAME_RAD) & (along < np.pi - _SAME_RAD)
    order, along = order[distinct], along[distinct]
    steps = np.diff(along)
    if order.size < FEWEST_PROJECTIONS:
        return None
    usual = float(np.median(steps))
    if steps.max() > min(UNEVEN * usual, LARGEST_STEP_RAD):
        return None
    return _even(order, along, usual)


def _even(
    order: NDArray[np.intp], along: NDArray[np.float64], usual: float
) -> tuple[NDArray[np.intp], NDArray[np.float32]] | None:
    count = order.size
    even_step = float(along[-1]) / (count - 1)
    seam = (np.pi - float(along[-1])) / even_step
    if seam < SEAM[0] and abs(even_step - usual) < 0.01 * usual:  # the last one nearly repeats the first
        order, along, count = order[:-1], along[:-1], count - 1
        seam = (np.pi - float(along[-1])) / even_step
    if not SEAM[0] <= seam <= SEAM[1]:
        return None
    positions = np.interp(np.linspace(0, along[-1], count), along, np.arange(count))
    if np.abs(positions - np.arange(count)).max() < 0.3:
        positions = np.arange(count, dtype=np.float64)
    return order, positions.astype(np.float32)
