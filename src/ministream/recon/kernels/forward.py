"""Forward projection: `sinogram += gain · A image`, as a gather.

Along its driving axis (the one it is more parallel to) a ray has one sample per line, between two pixels
(P. M. Joseph, IEEE Trans. Med. Imaging 1 (1982) 192). With line i and position j in the image, (row, column) for rays
that run down and (column, row) for rays that run across:

    j(u, i) = h + a (u - axis) + b (i - h),  h = (n - 1) / 2,  ray length per line |a|
    down, |cos| >= |sin|:  a =  1 / cos,  b = sin / cos
    across:                a = -1 / sin,  b = cos / sin

The image is worked through in tiles of `LINES` lines. A ray belongs to the block of positions where it crosses the
middle of the strip and runs through all of its lines there, so every ray has the same number of samples: no clipping,
no branches. The tile with a margin for the rays' drift is copied to scratch (transposed for rays that run across, zero
outside the image), where it stays in cache for all projections of a task.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ministream.jit import inline, jit
from ministream.recon.kernels.vector import fetch_add, fma, load, store, zeros

LINES = 16
BLOCK = 16
MARGIN = LINES // 2 + 1
WIDTH = BLOCK + 2 * MARGIN + 1
RAYS = BLOCK + 2


@inline
def _first_ray(u: float, rising: bool) -> int:
    """The first ray at or after position u, in the order in which j rises."""
    return math.ceil(u) if rising else math.floor(u) + 1


@inline
def _weights(rays, base, a, b, gain, lanes, near, far, place):  # type: ignore[no-untyped-def]
    """Both weights and the place in the tile of every sample of `rays` neighbouring rays."""
    length = np.float32(abs(a) * gain)
    step = np.float32(b)
    for ray in range(rays):
        start = np.float32(base + ray * a)
        for line in range(LINES):
            j = start + np.float32(line) * step
            whole = np.int32(j)
            upper = (j - np.float32(whole)) * length
            far[ray * LINES + line] = upper
            near[ray * LINES + line] = length - upper
            place[ray * LINES + line] = (np.int32(line * WIDTH) + whole) * np.int32(lanes)


def make_forward(lanes: int) -> Any:
    """The kernel for blocks of `lanes` slices."""

    @inline
    def copy_tile(image, n, slices, at, i0, j0, across, tile):  # type: ignore[no-untyped-def]
        nothing = zeros(lanes)
        for line in range(LINES):
            i = i0 + line
            for k in range(WIDTH):
                j = j0 + k
                here = (line * WIDTH + k) * lanes
                if i < n and 0 <= j < n:
                    pixel = j * n + i if across else i * n + j
                    store(tile, here, load(image, pixel * slices + at, lanes))
                else:
                    store(tile, here, nothing)

    @inline
    def gather(tile, near, far, place, ray, total):  # type: ignore[no-untyped-def]
        for line in range(LINES):
            k = ray * LINES + line
            here = np.int64(place[k])
            total = fma(near[k], load(tile, here, lanes), total)
            total = fma(far[k], load(tile, here + lanes, lanes), total)
        return total

    @jit
    def forward(
        counter,
        quota,
        tasks,
        image,
        sinogram,
        slots,
        cos,
        sin,
        axis,
        gain,
        first,
        blocks,
        group,
        tile,
        near,
        far,
        place,
    ):  # type: ignore[no-untyped-def]  # noqa: E501
        n, slices, cols = image.shape[0], image.shape[2], sinogram.shape[1]
        half = (n - 1) / 2
        done = 0
        while done < quota:
            task = fetch_add(counter, 1)
            if task >= tasks:
                break
            done += 1
            at = first + (task % blocks) * lanes
            begin = (task // blocks) * group
            end = min(begin + group, slots.size)
            for across in range(2):
                for j0 in range(-MARGIN, n + MARGIN, BLOCK):
                    for i0 in range(0, n, LINES):
                        copied = False
                        middle = i0 + (LINES - 1) / 2 - half
                        for p in range(begin, end):
                            slot = slots[p]
                            c, s = cos[slot], sin[slot]
                            if (abs(c) < abs(s)) != (across == 1):
                                continue
                            a = -1 / s if across else 1 / c
                            b = c / s if across else s / c
                            low = axis + (j0 - half - b * middle) / a
                            high = axis + (j0 + BLOCK - half - b * middle) / a
                            if a > 0:
                                u0, u1 = _first_ray(low, True), _first_ray(high, True)
                            else:
                                u0, u1 = _first_ray(high, False), _first_ray(low, False)
                            u0, u1 = max(u0, 0), min(u1, cols)
                            if u0 >= u1:
                                continue
                            if not copied:
                                copy_tile(image, n, slices, at, i0, j0 - MARGIN, across == 1, tile)
                                copied = True
                            base = half + a * (u0 - axis) + b * (i0 - half) - (j0 - MARGIN)
                            _weights(u1 - u0, base, a, b, gain, lanes, near, far, place)
                            for ray in range(u1 - u0):
                                out = ((slot * cols) + u0 + ray) * slices + at
                                store(sinogram, out, gather(tile, near, far, place, ray, load(sinogram, out, lanes)))
        return done

    return forward
