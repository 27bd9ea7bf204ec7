"""Forward projection: `sinogram += gain · A image`, as a gather.

Along its driving axis (the one it is more parallel to) a ray has one sample per line, between two pixels
(P. M. Joseph, IEEE Trans. Med. Imaging 1 (1982) 192). With line i and position j in the image, (row, column) for rays
that run down and (column, row) for rays that run across:

    j(u, i) = h + a (u - axis) + b (i - h),  h = (n - 1) / 2,  ray length per line |a|
    down, |cos| >= |sin|:  a =  1 / cos,  b = sin / cos
    across:                a = -1 / sin,  b = cos / sin

The image is processed in squares, these in strips of `LINES` lines and `Blocking.strip` positions. A ray belongs to the
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
from ministream.recon.backend.cpu.blocking import LINES
from ministream.recon.backend.cpu.layout import aligned_zeros
from ministream.recon.backend.cpu.vector import (
    add,
    clip,
    fetch_add,
    fma,
    greatest,
    item,
    lanes_of,
    least,
    load,
    minus,
    prefetch,
    ramp,
    real,
    side_of,
    store,
    strip_of,
    sums_of,
    times,
    truncate,
    zeros,
)

MARGIN = LINES // 2 + 1
EARLY = 2
"""Rays between the computation of weights and their use."""
RING = 4
"""Rays whose weights are kept, a power of two above `EARLY`."""
AHEAD = 8
"""Rays between the prefetch of a sum and its use."""
CACHE_LINE = 16
"""Floats in a cache line."""


class ForwardPlan(NamedTuple):
    """Division of the work: a task is `group` projections of one block of slices in one of `strips` detector parts."""

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


class Strip(NamedTuple):
    """Rays of one projection in one strip: where sample `line` of ray `ray` lies, and how long it is.

    Position base + ray a + line step, in steps through the image's memory. Unless all are `inside`, `lines` lines exist
    and pairs of pixels begin at low...high.
    """

    base: float
    a: float
    step: np.float32
    length: np.float32
    line_step: np.int32
    position_step: np.int32
    inside: bool
    lines: np.int32
    low: np.int32
    high: np.int32


class ForwardScratch(NamedTuple):
    """One thread's memory: two weights and a place for every sample of `RING` rays.

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
        near, far, place = aligned_zeros((3, RING * LINES))
        return cls(near, far, place.view(np.int32), np.array([-1, 0]), np.zeros(3, np.int64))


@inline
def _blocks(blocking, n):
    """How many blocks, margins included, lie side by side, and how long each is."""
    blocks = (n + 2 * MARGIN + side_of(blocking) - 1) // side_of(blocking)
    return blocks, (n + 2 * MARGIN + blocks - 1) // blocks


@jit
def squares(blocking, n):
    """How many squares a task consists of."""
    return _blocks(blocking, n)[0] ** 2


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
def _weigh(strip, ray, near, far, place):
    """Both weights of a ray's samples, and where they lie from the block's corner."""
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    k = (ray % RING) * LINES
    j = ramp(np.float32(strip.base + ray * strip.a), strip.step)
    if strip.inside:
        whole = truncate(j)
        upper = times(minus(j, real(whole)), strip.length)
        store(far, k, upper)
        store(near, k, minus(strip.length, upper))
        store(place, k, add(times(whole, strip.position_step), ramp(np.int32(0), strip.line_step)))
    else:
        whole = greatest(least(truncate(j), strip.high), strip.low)
        offset = minus(j, real(whole))
        # a missing line has length 0, and its samples are read from the last existing one
        length = times(clip(minus(np.float32(strip.lines), ramp(zero, one)), zero, one), strip.length)
        line = least(ramp(np.int32(0), np.int32(1)), strip.lines - np.int32(1))
        # 1 - |offset| and 1 - |offset - 1|
        store(near, k, times(greatest(least(minus(one, offset), add(one, offset)), zero), length))
        store(far, k, times(greatest(least(offset, minus(two, offset)), zero), length))
        store(place, k, add(times(whole, strip.position_step), times(line, strip.line_step)))


@inline
def _look_ahead(blocking, part, image, slices, square, scratch):
    """Prepare the gradual prefetch of the pixels of `square`, while the previous square is projected."""
    blocks, block = _blocks(blocking, image.n)[0], side_of(blocking)
    scratch.ahead[0] = 0
    scratch.ahead[1] = square // blocks * block * image.pitch + square % blocks * block * slices + part.at
    # a projection's rays pass a square in one strip or two
    scratch.ahead[2] = 1 + block // (block // LINES * (part.end - part.begin))


@inline
def _ask(blocking, image, pitch, slices, number, corner, count):
    """Prefetch pixels [number, number + count) of a square."""
    block = side_of(blocking)
    for pixel in range(number, number + count):
        here = corner + pixel // block * pitch + pixel % block * slices
        for k in range(0, lanes_of(blocking), CACHE_LINE):
            prefetch(image, here + k)


@inline
def _gather(blocking, image, corner, far_step, near, far, place, first, total):
    """total + a ray's samples, whose weights begin at `first`; several sums hide the latency of the multiply-adds."""
    if sums_of(blocking) == 1:
        for line in range(LINES):
            k = first + line
            here = corner + np.int64(item(place, k))
            total = fma(item(near, k), load(blocking, image, here), total)
            total = fma(item(far, k), load(blocking, image, here + far_step), total)
        return total
    if sums_of(blocking) == 2:
        other = zeros(blocking)
        for line in range(LINES):
            k = first + line
            here = corner + np.int64(item(place, k))
            total = fma(item(near, k), load(blocking, image, here), total)
            other = fma(item(far, k), load(blocking, image, here + far_step), other)
        return add(total, other)
    second, third, fourth = zeros(blocking), zeros(blocking), zeros(blocking)
    for line in range(0, LINES, 2):
        k = first + line
        here = corner + np.int64(item(place, k))
        total = fma(item(near, k), load(blocking, image, here), total)
        second = fma(item(far, k), load(blocking, image, here + far_step), second)
        here = corner + np.int64(item(place, k + 1))
        third = fma(item(near, k + 1), load(blocking, image, here), third)
        fourth = fma(item(far, k + 1), load(blocking, image, here + far_step), fourth)
    return add(add(total, second), add(third, fourth))


@inline
def _project(blocking, image, pitch, corner, strip, scratch, rays, sinogram, out, slices):
    """Add the strip's samples to the sums of neighbouring rays."""
    near, far, place = scratch.near, scratch.far, scratch.place
    # element by element: numba would unpack an array as an object
    asked, square, count = scratch.ahead[0], scratch.ahead[1], scratch.ahead[2]
    for ray in range(EARLY):
        _weigh(strip, ray, near, far, place)
    for ray in range(rays):
        # early: loading a scalar stalls if it was just stored as part of a vector
        _weigh(strip, ray + EARLY, near, far, place)
        here = out + ray * slices
        for k in range(0, lanes_of(blocking), CACHE_LINE):
            prefetch(sinogram, here + AHEAD * slices + k)
        if lanes_of(blocking) >= CACHE_LINE and asked < side_of(blocking) ** 2:
            _ask(blocking, image, pitch, slices, asked, square, count)
            asked += count
        first, far_step = (ray % RING) * LINES, np.int64(strip.position_step)
        total = _gather(blocking, image, corner, far_step, near, far, place, first, load(blocking, sinogram, here))
        store(sinogram, here, total)
    scratch.ahead[0] = asked


@inline
def _strip(blocking, part, image, sinogram, beams, gain, scratch, across, i0, j0, j1):
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
        length, steps = np.float32(abs(a) * gain), (np.int32(line_step), np.int32(position_step))
        strip = Strip(base, a, np.float32(b), length, steps[0], steps[1], inside, lines, low, high)
        out = (slot * cols + u0) * slices + part.at
        _project(blocking, image.data, image.pitch, corner, strip, scratch, u1 - u0, sinogram, out, slices)


@inline
def _part(blocking, plan, task, projections, cols):
    """The work of task number `task`."""
    strip, group = (task // plan.blocks) % plan.strips, task // (plan.blocks * plan.strips)
    return Part(
        plan.first + (task % plan.blocks) * lanes_of(blocking),
        group * plan.group,
        min((group + 1) * plan.group, projections),
        cols * strip // plan.strips,
        cols * (strip + 1) // plan.strips,
    )


@inline
def _square(blocking, part, image, sinogram, beams, gain, scratch, square):
    """Project one square of the image, along rays both down and across, so that it is in the cache for both."""
    blocks, block = _blocks(blocking, image.n)
    y, x = square // blocks, square % blocks
    _look_ahead(blocking, part, image, sinogram.shape[2], square + 1, scratch)
    for across in (False, True):
        line, position = (x, y) if across else (y, x)
        j0 = position * block - MARGIN
        for i0 in range(line * side_of(blocking), min((line + 1) * side_of(blocking), image.n), LINES):
            for j in range(j0, j0 + block, strip_of(blocking)):
                j1 = min(j + strip_of(blocking), j0 + block)
                _strip(blocking, part, image, sinogram, beams, gain, scratch, across, i0, j, j1)


@jit
def forward(blocking, counter, quota, plan, image, sinogram, beams, gain, scratch):
    """Do up to `quota` squares of the tasks of `plan` on the counter; returns how many were done."""
    last = _blocks(blocking, image.n)[0] ** 2
    state = scratch.state
    done = 0
    while done < quota:
        if state[0] < 0:
            task = fetch_add(counter, 1)
            if task >= plan.tasks:
                break
            state[0], state[1] = task, 0
        part = _part(blocking, plan, state[0], beams.slots.size, sinogram.shape[1])
        begin, end = state[1], min(last, state[1] + quota - done)
        for square in range(begin, end):
            _square(blocking, part, image, sinogram, beams, gain, scratch, square)
        done += end - begin
        state[1] = end
        if end == last:
            state[0] = -1
    return done
