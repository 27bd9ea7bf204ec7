"""The order in which view angles are acquired: pure functions on numbers.

`sequential` is one sweep. `interlaced` is the view sampling of TIMBIR: several coarse sweeps, each filling the gaps
the earlier ones left, in bit-reversed order (Mohan et al., IEEE Trans. Comput. Imaging 1(2), 96-111, 2015, eq. 1).
`golden-angle` advances by the golden section of the range, so that any run of successive views covers it almost
evenly (Köhler, IEEE Nucl. Sci. Symp. Conf. Rec. 2004, 3961-3965).
"""

from __future__ import annotations

import bisect
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ministream.errors import ConfigError

ORDERS = ("sequential", "interlaced", "golden-angle")
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


def angles(order: str, count: int, range_deg: float) -> NDArray[np.float64]:
    """View angles [count] in degrees, in acquisition order, from 0 up to but not including `range_deg`.

    Raises ConfigError for an unknown order.
    """
    if _known(order) == "golden-angle":
        return _golden(count) * range_deg
    sweep = np.arange(count, dtype=np.float64) * (range_deg / count)
    return sweep[_interlaced(count)] if order == "interlaced" else sweep


def permutation(order: str, recorded_deg: ArrayLike) -> NDArray[np.intp]:
    """The order [count] in which to play the views of a recorded scan; `recorded_deg` [count] in any unit.

    Sequential keeps the recorded order, interlaced goes by angle, and golden-angle takes the view nearest to each
    golden angle that has not been played yet. Raises ConfigError for an unknown order.
    """
    recorded = np.asarray(recorded_deg, dtype=np.float64)
    if _known(order) == "sequential":
        return np.arange(recorded.size)
    by_angle = np.argsort(recorded, kind="stable")
    if order == "interlaced":
        return by_angle[_interlaced(recorded.size)]
    return by_angle[_nearest_to_golden(recorded[by_angle])]


def _known(order: str) -> str:
    if order not in ORDERS:
        raise ConfigError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    return order


def _interlaced(count: int) -> NDArray[np.intp]:
    """Sweep p of K takes every K-th view from the bit-reversal of p on; K is the largest power of two ≤ √count."""
    bits = (max(1, count).bit_length() - 1) // 2
    starts = (_reversed_bits(sweep, bits) for sweep in range(1 << bits))
    return np.concatenate([np.arange(start, count, 1 << bits) for start in starts])


def _reversed_bits(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2) if bits else 0


def _nearest_to_golden(ascending: NDArray[np.float64]) -> NDArray[np.intp]:
    """Greedy choice on the circle that the recorded range closes, one view's spacing longer than its extent."""
    count = ascending.size
    extent = float(ascending[-1] - ascending[0]) if count else 0.0
    if extent == 0.0:
        return np.arange(count)
    turn = extent * count / (count - 1)
    free = ((ascending - ascending[0]) / turn).tolist()
    index = list(range(count))
    chosen = []
    for wanted in _golden(count).tolist():
        after = bisect.bisect_left(free, wanted) % len(free)
        nearest = min((after - 1) % len(free), after, key=lambda i: _turn_between(free[i], wanted))
        del free[nearest]
        chosen.append(index.pop(nearest))
    return np.array(chosen, dtype=np.intp)


def _golden(count: int) -> NDArray[np.float64]:
    """The first `count` multiples of the golden section, modulo 1."""
    multiples = np.arange(count, dtype=np.float64) * GOLDEN_SECTION
    return multiples - np.floor(multiples)


def _turn_between(one: float, other: float) -> float:
    apart = abs(one - other)
    return min(apart, 1.0 - apart)
