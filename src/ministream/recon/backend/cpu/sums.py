"""Row and column sums of the projections' matrix, which are sums of weights: no image or sinogram is read.

The weights are those of `forward` and `back`; positions are float32 from the corner of a block of `BLOCK`.
"""

from __future__ import annotations

import math

import numpy as np

from ministream.jit import inline, jit
from ministream.recon.backend.cpu.vector import fetch_add

BLOCK = 64


@inline
def _add_pixels(start, cos, length, first, last, count, total):
    """total[k] += both weights of pixel k; detector columns before `first` or after `last` do not exist."""
    one, zero = np.float32(1), np.float32(0)
    for k in range(count):
        u = start + np.float32(k) * cos
        whole = np.floor(u)
        offset = (u - whole) * length
        near = max(zero, one - offset) if first <= whole <= last else zero
        far = max(zero, one + offset - length) if first <= whole + one <= last else zero
        total[k] += (near + far) * length


@jit
def columns(counter, quota, beams, cols, first_row, sums):
    """sums[row - first_row, column] = Σ over the projections of what a pixel adds to a detector of `cols` columns."""
    n = sums.shape[1]
    half = (n - 1) / 2
    total = np.empty(BLOCK, np.float32)
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= sums.shape[0]:
            break
        done += 1
        row = first_row + task
        for c0 in range(0, n, BLOCK):
            count = min(BLOCK, n - c0)
            total[:] = 0
            for slot in beams.slots:
                cos, sin = beams.cos[slot], beams.sin[slot]
                u = (c0 - half) * cos + (half - row) * sin + beams.axis_col
                corner = math.floor(u)
                length = np.float32(1 / max(abs(cos), abs(sin)))
                first, last = np.float32(-corner), np.float32(cols - 1 - corner)
                _add_pixels(np.float32(u - corner), np.float32(cos), length, first, last, count, total)
            for k in range(count):
                sums[task, c0 + k] = total[k]
    return done


@inline
def _add_line(before, after, a, count, total):
    """total[k] += the weight of ray k in a line; ray 0 lies `before` after the support's first pixel, and so on."""
    one, zero = np.float32(1), np.float32(0)
    for k in range(count):
        way = np.float32(k) * a
        total[k] += max(zero, min(one, before + way, after - way))


@jit
def rows(counter, quota, beams, spans, sums):
    """sums[p, column] = Σ over the lines of projection p's rays through the support.

    `spans` [across, end, line] says where the support begins and ends (one beyond) in each column and each row.
    """
    cols, n = sums.shape[1], spans.shape[2]
    half = (n - 1) / 2
    total = np.empty(BLOCK, np.float32)
    done = 0
    while done < quota:
        p = fetch_add(counter, 1)
        if p >= sums.shape[0]:
            break
        done += 1
        cos, sin = beams.cos[beams.slots[p]], beams.sin[beams.slots[p]]
        across = 1 if abs(cos) < abs(sin) else 0
        a, b = (-1 / sin, cos / sin) if across else (1 / cos, sin / cos)
        for u0 in range(0, cols, BLOCK):
            count = min(BLOCK, cols - u0)
            total[:] = 0
            for line in range(n):
                begin, end = spans[across, 0, line], spans[across, 1, line]
                if begin < end:
                    j = half + a * (u0 - beams.axis_col) + b * (line - half)
                    _add_line(np.float32(j - begin + 1), np.float32(end - j), np.float32(a), count, total)
            for k in range(count):
                sums[p, u0 + k] = total[k] * abs(a)
    return done
