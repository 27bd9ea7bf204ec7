"""Back projection: the exact transpose of `forward`, also as a gather.

Pixel (row, column) meets projection p at u = x cos + y sin + axis. Seen from the pixel, Joseph's weights are a triangle
over the detector: ray k has  d max(0, 1 - d |k - u|),  d = 1 / max(|cos|, |sin|), which is not zero for floor(u) and
floor(u) + 1 only. For a tile of pixels the needed piece of each projection is copied to scratch (zero outside the
detector), and a pixel's sums stay in registers over `GROUP` projections.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ministream.jit import inline, jit
from ministream.recon.kernels.vector import clip, fetch_add, fma, load, store, times, zeros

SIDE = 16
GROUP = 8
SPAN = math.ceil(SIDE * math.sqrt(2)) + 3


@inline
def _weights(count, column, row, base, cos, sin, length, lanes, near, far, place):  # type: ignore[no-untyped-def]
    """Both weights and the place in scratch where `count` projections meet the pixel (row, column) of the tile."""
    x, y = np.float32(column), np.float32(row)
    one, zero = np.float32(1), np.float32(0)
    for p in range(count):
        u = base[p] + x * cos[p] - y * sin[p]
        whole = np.int32(u)
        offset = (u - np.float32(whole)) * length[p]
        near[p] = max(zero, one - offset) * length[p]
        far[p] = max(zero, one + offset - length[p]) * length[p]
        place[p] = (np.int32(p * SPAN) + whole) * np.int32(lanes)


ADD, MULTIPLY = 0, 1


def make_back(lanes: int) -> Any:
    """The kernel for blocks of `lanes` slices."""

    @inline
    def copy_piece(sinogram, slot, cols, slices, at, u0, p, piece):  # type: ignore[no-untyped-def]
        nothing = zeros(lanes)
        for k in range(SPAN):
            u = u0 + k
            here = (p * SPAN + k) * lanes
            if 0 <= u < cols:
                store(piece, here, load(sinogram, (slot * cols + u) * slices + at, lanes))
            else:
                store(piece, here, nothing)

    @inline
    def finish(image, n, slices, at, r0, c0, factor, mode, lower, upper, total):  # type: ignore[no-untyped-def]
        """Bring the tile's sums into the image: x + factor·total or x · factor·total, then the limits."""
        for row in range(min(SIDE, n - r0)):
            for column in range(min(SIDE, n - c0)):
                pixel = (r0 + row) * n + c0 + column
                here = pixel * slices + at
                update = load(total, (row * SIDE + column) * lanes, lanes)
                old = load(image, here, lanes)
                weight = factor[r0 + row, c0 + column]
                if mode == MULTIPLY:
                    new = times(old, fma(weight, update, zeros(lanes)))
                else:
                    new = fma(weight, update, old)
                store(image, here, clip(new, lower, upper))

    @jit
    def back(
        counter,
        quota,
        tasks,
        image,
        sinogram,
        slots,
        cos,
        sin,
        axis,
        factor,
        mode,
        lower,
        upper,
        first,
        blocks,
        piece,
        total,
        near,
        far,
        place,
        local,
    ):  # type: ignore[no-untyped-def]  # noqa: E501
        n, slices, cols = image.shape[0], image.shape[2], sinogram.shape[1]
        half = (n - 1) / 2
        tiles = (n + SIDE - 1) // SIDE
        base, c32, s32, length = local[0], local[1], local[2], local[3]
        done = 0
        while done < quota:
            task = fetch_add(counter, 1)
            if task >= tasks:
                break
            done += 1
            at = first + (task % blocks) * lanes
            tile = task // blocks
            r0, c0 = (tile // tiles) * SIDE, (tile % tiles) * SIDE
            rows, columns = min(SIDE, n - r0), min(SIDE, n - c0)
            for begin in range(0, slots.size, GROUP):
                count = min(GROUP, slots.size - begin)
                for p in range(count):
                    slot = slots[begin + p]
                    c, s = cos[slot], sin[slot]
                    u = (c0 - half) * c + (half - r0) * s + axis
                    u0 = math.floor(u + min(0.0, (SIDE - 1) * c) - max(0.0, (SIDE - 1) * s))
                    base[p], c32[p], s32[p], length[p] = u - u0, c, s, 1 / max(abs(c), abs(s))
                    copy_piece(sinogram, slot, cols, slices, at, u0, p, piece)
                for row in range(rows):
                    for column in range(columns):
                        _weights(count, column, row, base, c32, s32, length, lanes, near, far, place)
                        here = (row * SIDE + column) * lanes
                        acc = load(total, here, lanes) if begin else zeros(lanes)
                        for p in range(count):
                            k = np.int64(place[p])
                            acc = fma(near[p], load(piece, k, lanes), acc)
                            acc = fma(far[p], load(piece, k + lanes, lanes), acc)
                        store(total, here, acc)
            finish(image, n, slices, at, r0, c0, factor, mode, lower, upper, total)
        return done

    return back
