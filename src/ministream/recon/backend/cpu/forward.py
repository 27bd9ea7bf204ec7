"""Forward projection: `sinogram += gain · A image`, as a gather.

Along its driving axis (the one it is more parallel to) a ray has one sample per line, between two pixels
(P. M. Joseph, IEEE Trans. Med. Imaging 1 (1982) 192). With line i and position j in the image, (row, column) for rays
that run down and (column, row) for rays that run across:

    j(u, i) = h + a (u - axis) + b (i - h),  h = (n - 1) / 2,  ray length per line |a|
    down, |cos| >= |sin|:  a =  1 / cos,  b = sin / cos
    across:                a = -1 / sin,  b = cos / sin

The image is worked through in strips of `LINES` lines and blocks of at most `_block` positions. A ray belongs to the
block in which it crosses the middle of the strip and runs through all of the strip's lines, so every ray has the same
number of samples: no clipping, no branches. Where a block with the margin that rays may drift into reaches beyond
the image, the pair of pixels is moved inside and the weights follow it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ministream.jit import inline, jit
from ministream.recon.backend.cpu.layout import aligned_zeros
from ministream.recon.backend.cpu.vector import WIDE, add, fetch_add, fma, item, load, prefetch, store, width_of, zeros

LINES = 16
MARGIN = LINES // 2 + 1
BLOCK = 32
"""Most positions of a block, for any number of lanes."""
RAYS = BLOCK + 2
AHEAD = 8
"""Rays between the prefetch of a sum and its use."""
CACHE_LINE = 16
"""Floats in a cache line."""


class ForwardPlan(NamedTuple):
    """How the work is cut: a task is `group` projections of one block of slices in one of `strips` detector parts."""

    tasks: int
    first: int
    blocks: int
    group: int
    strips: int


class Part(NamedTuple):
    """One task: projections [begin, end) and detector columns [u0, u1) of the slices that start at `at`."""

    at: int
    begin: int
    end: int
    u0: int
    u1: int


class ForwardScratch(NamedTuple):
    """One thread's memory: two weights and a place for every sample of a block's rays.

    `state` is the task at hand, -1 for none, and its next square; `ahead` what of the square after that to ask for:
    the next pixel, where pixel 0 lies, and pixels per ray.
    """

    near: NDArray[np.float32]
    far: NDArray[np.float32]
    place: NDArray[np.int32]
    state: NDArray[np.int64]
    ahead: NDArray[np.int64]

    @classmethod
    def new(cls) -> Self:
        near, far, place = aligned_zeros((3, RAYS * LINES))
        return cls(near, far, place.view(np.int32), np.array([-1, 0]), np.zeros(3, np.int64))


@inline
def _block(lanes):
    """Most positions of a block: its square of the image and the sums of its rays fit the second-level cache."""
    return BLOCK // 2 if width_of(lanes) == WIDE else BLOCK


@inline
def _blocks(lanes, n):
    """How many blocks, margins included, lie side by side, and how long each is."""
    blocks = (n + 2 * MARGIN + _block(lanes) - 1) // _block(lanes)
    return blocks, (n + 2 * MARGIN + blocks - 1) // blocks


@jit
def squares(lanes, n):
    """How many squares a task consists of."""
    return _blocks(lanes, n)[0] ** 2


@inline
def _slopes(cos, sin, across):
    """a = dj/du and b = dj/di of a projection."""
    return (-1 / sin, cos / sin) if across else (1 / cos, sin / cos)


@inline
def _first_ray(u, rising):
    """The first ray at or after position u, in the order in which j rises."""
    return math.ceil(u) if rising else math.floor(u) + 1


@inline
def _rays(a, b, half, axis, middle, j0, j1):
    """The rays [first, last) that cross the line `middle` (from the centre) at positions j0 <= j < j1."""
    low = axis + (j0 - half - b * middle) / a
    high = axis + (j1 - half - b * middle) / a
    if a > 0:
        return _first_ray(low, True), _first_ray(high, True)
    return _first_ray(high, False), _first_ray(low, False)


@inline
def _weigh(rays, base, a, b, gain, line_step, position_step, scratch):
    """Both weights of every sample, and where it lies from the block's corner."""
    length = np.float32(abs(a) * gain)
    step = np.float32(b)
    for ray in range(rays):
        start = np.float32(base + ray * a)
        for line in range(LINES):
            k = ray * LINES + line
            j = start + np.float32(line) * step
            whole = np.int32(j)
            upper = (j - np.float32(whole)) * length
            scratch.far[k] = upper
            scratch.near[k] = length - upper
            scratch.place[k] = np.int32(line) * line_step + whole * position_step


@inline
def _weigh_edge(rays, base, a, b, gain, line_step, position_step, lines, low, high, scratch):
    """As `_weigh`, with `lines` lines and pairs of pixels that begin at low...high: 0 for samples outside."""
    one, zero = np.float32(1), np.float32(0)
    length = np.float32(abs(a) * gain)
    step = np.float32(b)
    for ray in range(rays):
        start = np.float32(base + ray * a)
        for line in range(LINES):
            k = ray * LINES + line
            j = start + np.float32(line) * step
            whole = max(low, min(np.int32(j), high))
            offset = j - np.float32(whole)
            weight = length if line < lines else zero
            scratch.near[k] = max(zero, one - abs(offset)) * weight
            scratch.far[k] = max(zero, one - abs(offset - one)) * weight
            scratch.place[k] = min(np.int32(line), lines - np.int32(1)) * line_step + whole * position_step


@inline
def _look_ahead(lanes, part, image, slices, square, scratch):
    """Make ready to ask for the pixels of `square` little by little, while the one before it is projected."""
    blocks, block = _blocks(lanes, image.n)[0], _block(lanes)
    scratch.ahead[0] = 0
    scratch.ahead[1] = square // blocks * block * image.pitch + square % blocks * block * slices + part.at
    # a projection's rays pass a square in one strip or two
    scratch.ahead[2] = 1 + block // (block // LINES * (part.end - part.begin))


@inline
def _ask(lanes, image, pitch, slices, number, corner, count):
    """Prefetch pixels [number, number + count) of a square."""
    block = _block(lanes)
    for pixel in range(number, number + count):
        here = corner + pixel // block * pitch + pixel % block * slices
        for k in range(0, width_of(lanes), CACHE_LINE):
            prefetch(image, here + k)


@inline
def _gather(lanes, image, corner, far_step, near, far, place, ray, total):
    """total + the ray's samples in the strip; several sums hide the latency of the multiply-adds."""
    if width_of(lanes) == WIDE:
        other = zeros(lanes)
        for line in range(LINES):
            k = ray * LINES + line
            here = corner + np.int64(item(place, k))
            total = fma(item(near, k), load(lanes, image, here), total)
            other = fma(item(far, k), load(lanes, image, here + far_step), other)
        return add(total, other)
    second, third, fourth = zeros(lanes), zeros(lanes), zeros(lanes)
    for line in range(0, LINES, 2):
        k = ray * LINES + line
        here = corner + np.int64(item(place, k))
        total = fma(item(near, k), load(lanes, image, here), total)
        second = fma(item(far, k), load(lanes, image, here + far_step), second)
        here = corner + np.int64(item(place, k + 1))
        third = fma(item(near, k + 1), load(lanes, image, here), third)
        fourth = fma(item(far, k + 1), load(lanes, image, here + far_step), fourth)
    return add(add(total, second), add(third, fourth))


@inline
def _project(lanes, image, pitch, corner, far_step, scratch, rays, sinogram, out, slices):
    """Add the strip's samples to the sums of neighbouring rays."""
    near, far, place = scratch.near, scratch.far, scratch.place
    # one by one: numba would unpack an array as an object
    asked, square, count = scratch.ahead[0], scratch.ahead[1], scratch.ahead[2]
    for ray in range(rays):
        here = out + ray * slices
        for k in range(0, width_of(lanes), CACHE_LINE):
            prefetch(sinogram, here + AHEAD * slices + k)
        if width_of(lanes) >= CACHE_LINE and asked < _block(lanes) ** 2:
            _ask(lanes, image, pitch, slices, asked, square, count)
            asked += count
        total = _gather(lanes, image, corner, far_step, near, far, place, ray, load(lanes, sinogram, here))
        store(sinogram, here, total)
    scratch.ahead[0] = asked


@inline
def _strip(lanes, part, image, sinogram, beams, gain, scratch, across, i0, j0, j1):
    """Project one block of one strip along the rays that run across, or down."""
    n, cols, slices = image.n, sinogram.shape[1], sinogram.shape[2]
    half, axis = (n - 1) / 2, beams.axis_col
    line_step, position_step = (slices, image.pitch) if across else (image.pitch, slices)
    inside = i0 + LINES <= n and j0 >= MARGIN and j1 + MARGIN < n
    lines, low, high = np.int32(min(LINES, n - i0)), np.int32(MARGIN - j0), np.int32(MARGIN - j0 + n - 2)
    corner = i0 * line_step + (j0 - MARGIN) * position_step + part.at
    for p in range(part.begin, part.end):
        slot = beams.slots[p]
        cos, sin = beams.cos[slot], beams.sin[slot]
        if (abs(cos) < abs(sin)) != across:
            continue
        a, b = _slopes(cos, sin, across)
        u0, u1 = _rays(a, b, half, axis, i0 + (LINES - 1) / 2 - half, j0, j1)
        u0, u1 = max(u0, part.u0), min(u1, part.u1)
        if u0 >= u1:
            continue
        base = half + a * (u0 - axis) + b * (i0 - half) - (j0 - MARGIN)
        out = (slot * cols + u0) * slices + part.at
        rays, steps = u1 - u0, (np.int32(line_step), np.int32(position_step))
        if inside:
            _weigh(rays, base, a, b, gain, steps[0], steps[1], scratch)
        else:
            _weigh_edge(rays, base, a, b, gain, steps[0], steps[1], lines, low, high, scratch)
        _project(lanes, image.data, image.pitch, corner, position_step, scratch, rays, sinogram, out, slices)


@inline
def _part(lanes, plan, task, projections, cols):
    """What task number `task` is to do."""
    strip, group = (task // plan.blocks) % plan.strips, task // (plan.blocks * plan.strips)
    return Part(
        plan.first + (task % plan.blocks) * width_of(lanes),
        group * plan.group,
        min((group + 1) * plan.group, projections),
        cols * strip // plan.strips,
        cols * (strip + 1) // plan.strips,
    )


@inline
def _square(lanes, part, image, sinogram, beams, gain, scratch, square):
    """Project one square of the image, along rays both down and across, so that it is in cache for both."""
    blocks, block = _blocks(lanes, image.n)
    y, x = square // blocks, square % blocks
    _look_ahead(lanes, part, image, sinogram.shape[2], square + 1, scratch)
    for across in (False, True):
        line, position = (x, y) if across else (y, x)
        j0 = position * block - MARGIN
        for i0 in range(line * _block(lanes), min((line + 1) * _block(lanes), image.n), LINES):
            _strip(lanes, part, image, sinogram, beams, gain, scratch, across, i0, j0, j0 + block)


@jit
def forward(lanes, counter, quota, plan, image, sinogram, beams, gain, scratch):
    """Do up to `quota` squares of the tasks of `plan` on the counter; returns how many were done."""
    last = _blocks(lanes, image.n)[0] ** 2
    state = scratch.state
    done = 0
    while done < quota:
        if state[0] < 0:
            task = fetch_add(counter, 1)
            if task >= plan.tasks:
                break
            state[0], state[1] = task, 0
        part = _part(lanes, plan, state[0], beams.slots.size, sinogram.shape[1])
        begin, end = state[1], min(last, state[1] + quota - done)
        for square in range(begin, end):
            _square(lanes, part, image, sinogram, beams, gain, scratch, square)
        done += end - begin
        state[1] = end
        if end == last:
            state[0] = -1
    return done
