"""Flat/dark correction, logarithm and transposition into the window in one pass over the pixels."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.jit import compile_all, inline, jit, reordering

BLOCK = 16
"""Rows processed together: their transposed columns fill whole cache lines of the window."""
DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
"""Pixel types that are read directly; others are converted to float32 first."""
MEASURES = ("sum", "moment", "left", "right", "bright", "saturated", "second")
"""For a sampled row: Σ p, Σ p v, mean p of each edge, the numbers of pixels with p < -BRIGHT and at the maximum of
their dtype, and Σ p v²; p are the values written, v = u - (cols - 1) / 2."""
BRIGHT = np.float32(0.1)
EDGE_SHARE = 32
"""The width of an edge is the number of columns divided by this."""

MIN_TRANSMISSION = 1e-5
"""The transmission assumed where no photon was counted (p ≤ d): a line integral of 11.5."""
MOST_NEIGHBOURS = 31
"""The largest number of columns that `mend_outliers` compares."""

_LOST = np.float32(np.nan)


@inline
def _transmissions(raw, dark, gain, smallest, largest, repair, line):
    """line = (raw - dark) · gain, `repair` below `smallest`, NaN where lost: gain NaN, or not within ± `largest`.

    Returns the number of starved pixels (below `smallest`) and of lost pixels.
    """
    starved = 0
    lost = 0
    for u in range(raw.size):
        value = (np.float32(raw[u]) - dark[u]) * gain[u]
        known = (value >= -largest) & (value <= largest)
        low = known & (value < smallest)
        starved += low
        lost += not known
        line[u] = repair if low else (value if known else _LOST)
    return starved, lost


@inline
def _bridge(line):
    """Replace each run of NaN by linear interpolation between its neighbours; a row of NaN only becomes 0."""
    cols = line.size
    u = 0
    while u < cols:
        if line[u] == line[u]:
            u += 1
            continue
        stop = u
        while stop < cols and line[stop] != line[stop]:
            stop += 1
        left = line[u - 1] if u > 0 else (line[stop] if stop < cols else np.float32(0))
        right = line[stop] if stop < cols else left
        for k in range(u, stop):
            line[k] = left + (right - left) * np.float32((k - u + 1) / (stop - u + 1))
        u = stop


@reordering
def _measure(raw, top, line, measures):
    """MEASURES of one row."""
    cols = line.size
    middle = np.float32(0.5 * (cols - 1))
    one, none = np.float32(1), np.float32(0)
    total = moment = second = bright = saturated = none
    for u in range(cols):
        total += line[u]
        apart = np.float32(np.int32(u)) - middle
        moment += line[u] * apart
        second += line[u] * apart * apart
        bright += one if line[u] < -BRIGHT else none
    for u in range(cols):
        saturated += one if np.float32(raw[u]) >= top else none
    edge = max(1, cols // EDGE_SHARE)
    left = right = np.float32(0)
    for u in range(edge):
        left += line[u]
        right += line[cols - 1 - u]
    measures[0], measures[1] = total, moment
    measures[2], measures[3] = left / np.float32(edge), right / np.float32(edge)
    measures[4], measures[5] = bright, saturated
    measures[6] = second


@inline
def _is_blank(raw, gain, line, air, lost):
    """Whether a row holds one value, not `air`, that of the beam: it was never written, or lost on its way."""
    for u in range(raw.size):
        if raw[u] != raw[0] and (raw[u] == raw[u] or raw[0] == raw[0]):
            return False
    total = np.float32(0)
    alive = False
    for u in range(line.size):
        total += abs(line[u] - air)
        alive |= gain[u] == gain[u]
    return alive and (lost == raw.size or total > BRIGHT * np.float32(line.size))


def edge_cols(cols: int) -> int:
    """Number of columns of an edge, averaged by `_measure`."""
    return max(1, cols // EDGE_SHARE)


@functools.cache
def warm_up(dtype: np.dtype[Any]) -> None:
    """Compile or load the kernel for one type of pixels; one process of a node compiles it for all."""
    line, measures = np.zeros((1, 1), np.float32), np.zeros((1, len(MEASURES)), np.float32)
    places = np.zeros(1, np.int64)
    raw, zero = read_only(np.zeros((1, 1), read_as(dtype))), np.float32(0)

    def call() -> None:
        correct(raw, line, line, False, zero, zero, zero, zero, places, line.copy(), line.copy(), measures)

    compile_all({"correct": call})


@functools.cache
def warm_up_steps(dtype: np.dtype[Any]) -> None:
    """The same for the kernels of the optional corrections, and for transmissions written row by row."""
    image, measures = np.zeros((2, 2), np.float32), np.zeros((1, len(MEASURES)), np.float32)
    raw, zero, places = read_only(np.zeros((2, 2), read_as(dtype))), np.float32(0), np.zeros(2, np.int64)
    scratch = np.zeros((2, 2 + MOST_NEIGHBOURS), np.float32)

    def by_rows() -> None:
        correct(raw, image, image, False, zero, zero, zero, zero, places, scratch, image.copy().T, measures)

    compile_all({"correct": by_rows, "outliers": lambda: mend_outliers(image, 3, np.float32(1), scratch)})


def read_as(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The pixel type that the kernel reads: itself, or float32, to which others are converted first."""
    return dtype if dtype in DTYPES else np.dtype(np.float32)


def read_only(raw: NDArray[Any]) -> NDArray[Any]:
    """Contiguous, aligned, read-only pixels, as the kernel expects; numba would compile again for other layouts."""
    view = np.require(raw, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


@jit
def correct(raw, dark, gain, minus_log, smallest, largest, repair, top, places, lines, out, measures):
    """out[col, row] = line integrals of raw[row, col]; returns the numbers of starved and lost pixels, and blank rows.

    `lines` is scratch, float32 [BLOCK, cols]. Without `minus_log` the transmissions themselves are written. Of
    the rows whose entry in `places` [rows] is not negative, `measures` [place, MEASURES] are computed in the same pass;
    `top` is the value of saturated pixels.
    """
    rows, cols = raw.shape
    starved = 0
    lost = 0
    blank = 0
    # transmissions of which the logarithm is taken later
    air = np.float32(1) if repair > 0 and not minus_log else np.float32(0)
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        for k in range(count):
            row, line = first + k, lines[k]
            low, gone = _transmissions(raw[row], dark[row], gain[row], smallest, largest, repair, line)
            if minus_log:
                for u in range(cols):
                    line[u] = -math.log(line[u])
            if gone:
                _bridge(line)
            if places[row] >= 0:
                _measure(raw[row], top, line, measures[places[row]])
            starved += low
            lost += gone
            blank += _is_blank(raw[row], gain[row], line, air, gone)
        for u in range(cols):
            for k in range(count):
                out[u, first + k] = lines[k, u]
    return starved, lost, blank


@jit
def mend_outliers(image, size, threshold, lines):
    """Pixels that exceed the median of `size` columns around them by `threshold` become that median.

    Beyond its ends a row is mirrored about its last pixel. `lines` is scratch, float32 [2, cols + MOST_NEIGHBOURS].
    Returns the number of mended pixels.
    """
    rows, cols = image.shape
    half = size // 2
    padded, above = lines[0], lines[1]
    one, none = np.float32(1), np.float32(0)
    mended = 0
    for r in range(rows):
        row = image[r]
        for u in range(-half, cols + half):
            place = abs(u) if u < cols else 2 * (cols - 1) - u
            padded[half + u] = row[min(max(place, 0), cols - 1)]
        above[:cols] = none
        # the median is exceeded where more than half of the values are
        for k in range(size):
            for u in range(cols):
                above[u] += one if padded[half + u] - padded[k + u] >= threshold else none
        for u in range(cols):
            if above[u] > half:
                row[u] = np.sort(padded[u : u + size])[half]
                mended += 1
    return mended
