"""Back projection: `image = clip(image + factor · Aᵀ sinogram)`, the exact transpose of `forward`, also as a gather.

Pixel (row, column) meets projection p at u = x cos + y sin + axis. Seen from the pixel, Joseph's weights are a triangle
over the detector: ray k has  d max(0, 1 - d |k - u|),  d = 1 / max(|cos|, |sin|), which is not zero for floor(u) and
floor(u) + 1 only. For a tile of pixels the needed piece of each projection is copied to scratch (zero outside the
detector), and a pixel's sum stays in registers over a group of projections.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ministream.jit import inline, jit
from ministream.recon.backend.cpu.blocking import Blocking
from ministream.recon.backend.cpu.layout import aligned_zeros
from ministream.recon.backend.cpu.vector import (
    add,
    clip,
    fetch_add,
    fma,
    group_of,
    item,
    lanes_of,
    load,
    prefetch,
    side_of,
    span_of,
    store,
    strip_of,
    sums_of,
    times,
    zeros,
)

CACHE_LINE = 16
"""Floats in a cache line."""


class BackPlan(NamedTuple):
    """The division of the work: a task is one tile of one block of slices."""

    tasks: int
    first: int
    blocks: int


class PixelUpdate(NamedTuple):
    """What happens to the image: x + factor · Aᵀy, or x · factor · Aᵀy, within the limits.

    With `interpolate` the weights are those of linear interpolation, d = 1.
    """

    factor: NDArray[np.float32]
    multiply: bool
    interpolate: bool
    lower: np.float32
    upper: np.float32


class BackScratch(NamedTuple):
    """Scratch memory of one thread.

    The pieces of a group of projections, the tile's sums, for a strip's row two weights and a place per projection,
    and per projection the tile corner's position in its piece, cos, sin and ray length.
    """

    piece: NDArray[np.float32]
    sums: NDArray[np.float32]
    near: NDArray[np.float32]
    far: NDArray[np.float32]
    place: NDArray[np.int32]
    corner: NDArray[np.float32]
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    length: NDArray[np.float32]

    @classmethod
    def of(cls, blocking: Blocking) -> Self:
        lanes, side, group = blocking.lanes, blocking.side, blocking.group
        weights, beams = aligned_zeros((3, group * blocking.strip)), aligned_zeros((4, group))
        return cls(
            aligned_zeros((group * blocking.span * lanes,)),
            aligned_zeros((side * side * lanes,)),
            weights[0],
            weights[1],
            weights[2].view(np.int32),
            *beams,
        )


@inline
def _weigh(blocking, count, row, first, scratch):
    """Both weights and the place in scratch where `count` projections meet the pixels of a row from column `first`."""
    one, zero = np.float32(1), np.float32(0)
    for p in range(count):
        length, cos = scratch.length[p], scratch.cos[p]
        start = scratch.corner[p] - np.float32(row) * scratch.sin[p] + np.float32(first) * cos
        for column in range(strip_of(blocking)):
            k = p * strip_of(blocking) + column
            u = start + np.float32(column) * cos
            whole = np.int32(u)
            offset = (u - np.float32(whole)) * length
            scratch.near[k] = max(zero, one - offset) * length
            scratch.far[k] = max(zero, one + offset - length) * length
            scratch.place[k] = (np.int32(p * span_of(blocking)) + whole) * np.int32(lanes_of(blocking))


@inline
def _copy(blocking, sinogram, slot, u0, span, at, p, piece):
    """piece[p, k] = sinogram[slot, u0 + k], zero outside the detector."""
    cols, slices, step = sinogram.shape[1], sinogram.shape[2], lanes_of(blocking)
    left = min(max(0, -u0), span)
    right = max(left, min(span, cols - u0))
    for k in range(left):
        store(piece, (p * span_of(blocking) + k) * step, zeros(blocking))
    for k in range(left, right):
        store(piece, (p * span_of(blocking) + k) * step, load(blocking, sinogram, (slot * cols + u0 + k) * slices + at))
    for k in range(right, span):
        store(piece, (p * span_of(blocking) + k) * step, zeros(blocking))


@inline
def _fetch(blocking, sinogram, beams, interpolate, begin, count, at, n, r0, c0, scratch):
    """Copy the parts of `count` projections that the tile at (r0, c0) needs to scratch."""
    half = (n - 1) / 2
    for p in range(count):
        slot = beams.slots[begin + p]
        cos, sin = beams.cos[slot], beams.sin[slot]
        u = (c0 - half) * cos + (half - r0) * sin + beams.axis_col
        u0 = math.floor(u + min(0.0, (side_of(blocking) - 1) * cos) - max(0.0, (side_of(blocking) - 1) * sin))
        scratch.corner[p], scratch.cos[p], scratch.sin[p] = u - u0, cos, sin
        scratch.length[p] = 1.0 if interpolate else 1 / max(abs(cos), abs(sin))
        _copy(
            blocking, sinogram, slot, u0, int((side_of(blocking) - 1) * (abs(cos) + abs(sin))) + 3, at, p, scratch.piece
        )


@inline
def _gather(blocking, piece, near, far, place, first, count, total):
    """total + what `count` projections give to a pixel, whose weights are `strip` apart from `first` on."""
    step, next_ray = strip_of(blocking), lanes_of(blocking)
    if sums_of(blocking) == 1:
        for p in range(count):
            k = first + p * step
            here = np.int64(item(place, k))
            total = fma(item(near, k), load(blocking, piece, here), total)
            total = fma(item(far, k), load(blocking, piece, here + next_ray), total)
        return total
    other = zeros(blocking)
    for p in range(count):
        k = first + p * step
        here = np.int64(item(place, k))
        total = fma(item(near, k), load(blocking, piece, here), total)
        other = fma(item(far, k), load(blocking, piece, here + next_ray), other)
    return add(total, other)


@inline
def _change(blocking, image, pixel, multiply, lower, upper, factor, total):
    """Apply the sum of a pixel to the image."""
    old = load(blocking, image, pixel)
    new = times(old, fma(factor, total, zeros(blocking))) if multiply else fma(factor, total, old)
    store(image, pixel, clip(new, lower, upper))


@inline
def _add_group(blocking, image, slices, at, r0, c0, update, count, first, last, scratch):
    """Add `count` projections to the tile's sums; after the last group the sums are applied to the image."""
    # unpacked once: numba would count references for every pixel
    data, factor, sums = image.data, update.factor, scratch.sums
    piece, near, far, place = scratch.piece, scratch.near, scratch.far, scratch.place
    multiply, lower, upper = update.multiply, update.lower, update.upper
    rows, columns = min(side_of(blocking), image.n - r0), min(side_of(blocking), image.n - c0)
    for begin in range(0, columns, strip_of(blocking)):
        for row in range(rows):
            _weigh(blocking, count, row, begin, scratch)
            pixel = (r0 + row) * image.pitch + (c0 + begin) * slices + at
            for column in range(min(strip_of(blocking), columns - begin)):
                here = (row * side_of(blocking) + begin + column) * lanes_of(blocking)
                total = zeros(blocking) if first else load(blocking, sums, here)
                total = _gather(blocking, piece, near, far, place, column, count, total)
                if last:
                    for k in range(0, lanes_of(blocking), CACHE_LINE):
                        prefetch(data, pixel + image.pitch + k)
                    scale = factor[r0 + row, c0 + begin + column]
                    _change(blocking, data, pixel, multiply, lower, upper, scale, total)
                else:
                    store(sums, here, total)
                pixel += slices


@jit
def back(blocking, counter, quota, plan, image, sinogram, beams, update, scratch):
    """Take up to `quota` tasks of `plan` from the counter; returns how many were done."""
    tiles = (image.n + side_of(blocking) - 1) // side_of(blocking)
    projections = beams.slots.size
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= plan.tasks:
            break
        done += 1
        at = plan.first + (task % plan.blocks) * lanes_of(blocking)
        tile = task // plan.blocks
        r0, c0 = (tile // tiles) * side_of(blocking), (tile % tiles) * side_of(blocking)
        for begin in range(0, projections, group_of(blocking)):
            count = min(group_of(blocking), projections - begin)
            _fetch(blocking, sinogram, beams, update.interpolate, begin, count, at, image.n, r0, c0, scratch)
            last = begin + count == projections
            _add_group(blocking, image, sinogram.shape[2], at, r0, c0, update, count, begin == 0, last, scratch)
    return done
