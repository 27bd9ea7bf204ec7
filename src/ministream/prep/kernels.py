"""Flat/dark correction, logarithm and transposition into the window in one pass over the pixels."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.jit import inline, jit, one_compiles_first

BLOCK = 16
"""Rows corrected together: their transposed columns fill whole cache lines of the window."""
DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
"""Pixels that are read as they come; others are converted to float32 first."""


@inline
def _transmissions(raw, dark, gain, smallest, repair, line):
    """line = (raw - dark) · gain, or `repair` where that is below `smallest` or NaN; returns how many, not the dead."""
    repaired = 0
    for u in range(raw.size):
        value = (np.float32(raw[u]) - dark[u]) * gain[u]
        good = value >= smallest
        repaired += (not good) and gain[u] != 0
        line[u] = value if good else repair
    return repaired


@inline
def _bridge(line, left, right):
    """Replace pixel u by the line between its nearest sound neighbours left[u] and right[u]; returns how many.

    left[u] = u marks a sound pixel; -1 stands for no sound pixel on that side.
    """
    bridged = 0
    for u in range(line.size):
        a, b = left[u], right[u]
        if a == u:
            continue
        bridged += 1
        if a < 0 and b < 0:
            line[u] = 0
        elif a < 0:
            line[u] = line[b]
        elif b < 0:
            line[u] = line[a]
        else:
            line[u] = line[a] + (line[b] - line[a]) * np.float32((u - a) / (b - a))
    return bridged


@functools.cache
def warm_up() -> None:
    """Compile or load the kernel for every type of pixel; one process of a node at a time."""
    line = np.zeros((1, 1), np.float32)
    places = np.zeros((1, 1), np.int32)
    with one_compiles_first():
        for dtype in DTYPES:
            raw = read_only(np.zeros((1, 1), dtype))
            correct(raw, line, line, places, places, False, np.float32(0), np.float32(0), line.copy(), line.copy())


def read_only(raw: NDArray[Any]) -> NDArray[Any]:
    """The pixels as the kernel takes them, contiguous, aligned, read-only: numba would compile for every other kind."""
    view = np.require(raw, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


@jit
def correct(raw, dark, gain, left, right, minus_log, smallest, repair, lines, out):
    """out[col, row] = line integrals of raw[row, col]; returns the number of repaired pixels.

    `lines` is scratch, float32 [BLOCK, cols]. Without `minus_log` the transmissions themselves are written.
    """
    rows, cols = raw.shape
    repaired = 0
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        for k in range(count):
            row, line = first + k, lines[k]
            repaired += _transmissions(raw[row], dark[row], gain[row], smallest, repair, line)
            if minus_log:
                for u in range(cols):
                    line[u] = -math.log(line[u])
            repaired += _bridge(line, left[row], right[row])
        for u in range(cols):
            for k in range(count):
                out[u, first + k] = lines[k, u]
    return repaired
