"""Planes through the volume: filtered back projection for their pixels alone, and planes of an image.

A pixel's value is the sum over the projections, with linear interpolation on the detector and between detector rows.
A slab contributes only what its own rows give: the parts of several slabs are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.jit import inline, jit
from ministream.recon.backend import Progress, idle
from ministream.recon.backend.cpu.projections import Pixels as ImagePixels
from ministream.recon.backend.cpu.threads import run
from ministream.recon.backend.cpu.vector import fetch_add, item
from ministream.recon.geometry import Beams
from ministream.recon.planes import Plane

_POINTS = 16
"""Points of a vertical line's task: their sums over all slices stay in the second-level cache."""
_SIDE = 32
"""Side of the squares in which other planes are computed: their pixels read neighbouring columns and rows."""

Pixels = NDArray[np.float32]


def slab_plane(
    filtered: Pixels,
    beams: Beams,
    weights: Pixels,
    plane: Plane,
    first: int,
    slices: int,
    progress: Progress = idle,
) -> Pixels:
    """What the detector rows [first, first + slices) give to a plane, [rows, cols].

    `filtered` is [projections, cols, padded slices], `weights` has one weight per projection.
    """
    if not (plane.dx or plane.dy):
        line = np.zeros((plane.cols, slices), np.float32)
        tasks = -(-plane.cols // _POINTS)
        _run(
            lambda counter, quota: _line(counter, quota, tasks, filtered, beams, weights, plane, line), tasks, progress
        )
        return _interpolated(line.T, plane.z0 - first + plane.dz * np.arange(plane.rows))
    out = np.zeros((plane.rows, plane.cols), np.float32)
    tasks = _squares(out)

    def tilted(counter: NDArray[np.int64], quota: int) -> int:
        return int(_tilted(counter, quota, tasks, filtered, beams, weights, plane, first, slices, out))

    _run(tilted, tasks, progress)
    return out


def row_plane(sinogram: Pixels, beams: Beams, plane: Plane, progress: Progress = idle) -> Pixels:
    """A horizontal plane, [rows, cols], from the filtered, weighted sinogram of its row, [projections, cols]."""
    # every ray through the plane meets the padded detector
    corners = ((plane.at(j, i)) for j in (0, plane.rows) for i in (0, plane.cols))
    reach = max(math.hypot(x, y) for x, y in corners) + 2
    before = max(0, math.ceil(reach - beams.axis_col))
    after = max(0, math.ceil(reach + beams.axis_col - sinogram.shape[1]))
    padded = np.pad(sinogram[beams.slots], ((0, 0), (before, after + 2)))
    pairs = np.stack([padded[:, :-1], np.diff(padded, axis=1)], axis=2)
    out = np.zeros((plane.rows, plane.cols), np.float32)
    directions = np.stack([beams.cos[beams.slots], beams.sin[beams.slots]], axis=1)
    tasks, axis_col = _squares(out), beams.axis_col + before
    _run(lambda counter, quota: _flat(counter, quota, tasks, pairs, directions, axis_col, plane, out), tasks, progress)
    return out


def image_plane(image: Pixels, plane: Plane, first: int, slices: int) -> Pixels:
    """What the slices [first, first + slices) of an image give to a plane, [rows, cols]."""
    out = np.zeros((plane.rows, plane.cols), np.float32)
    pixels, padded = ImagePixels.of(image), image.shape[2]
    _run(lambda counter, quota: _sampled(counter, quota, pixels, padded, plane, first, slices, out), plane.rows, idle)
    return out


def _run(work: Callable[[NDArray[np.int64], int], Any], tasks: int, progress: Progress) -> None:
    """Do `tasks` tasks of a kernel that needs no scratch."""

    def counted(counter: NDArray[np.int64], quota: int) -> int:
        done: int = work(counter, quota)
        return done

    run(lambda: counted, tasks, progress)


def _squares(out: Pixels) -> int:
    return int(-(-out.shape[0] // _SIDE) * -(-out.shape[1] // _SIDE))


def _interpolated(values: Pixels, z: NDArray[np.floating]) -> Pixels:
    """values [slices, points] at the positions z; 0 beyond one row outside, as if zero rows followed."""
    padded = np.pad(values, ((1, 1), (0, 0)))
    place = np.clip(z + 1, 0, len(padded) - 1)
    whole = np.minimum(place.astype(int), len(padded) - 2)
    share = (place - whole).astype(np.float32)[:, None]
    result: Pixels = padded[whole] * (1 - share) + padded[whole + 1] * share
    return result


@jit
def _line(counter, quota, tasks, filtered, beams, weights, plane, line):
    """line[point, slice] = the sum over the projections, for the points of a vertical plane's row."""
    cols, slices = filtered.shape[1], line.shape[1]
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        done += 1
        for slot in beams.slots:
            cos, sin = beams.cos[slot], beams.sin[slot]
            for i in range(task * _POINTS, min((task + 1) * _POINTS, line.shape[0])):
                u = (plane.x0 + i * plane.ax) * cos + (plane.y0 + i * plane.ay) * sin + beams.axis_col
                k = math.floor(u)
                if k < -1 or k >= cols:
                    continue
                far = weights[slot] * np.float32(u - k) if k + 1 < cols else np.float32(0)
                near = weights[slot] * np.float32(1 - (u - k)) if k >= 0 else np.float32(0)
                left, right, total = filtered[slot, max(k, 0)], filtered[slot, min(k + 1, cols - 1)], line[i]
                for s in range(slices):
                    total[s] += near * left[s] + far * right[s]
    return done


@jit
def _flat(counter, quota, tasks, pairs, directions, axis_col, plane, out):
    """Horizontal: `pairs` [projection, col] are a value and its difference to the next one, 0 beyond the detector."""
    across = (out.shape[1] + _SIDE - 1) // _SIDE
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        done += 1
        j0, i0 = task // across * _SIDE, task % across * _SIDE
        height, width = min(_SIDE, out.shape[0] - j0), min(_SIDE, out.shape[1] - i0)
        for p in range(pairs.shape[0]):
            cos, sin = directions[p, 0], directions[p, 1]
            u0 = plane.x0 * cos + plane.y0 * sin + axis_col
            du, dv = plane.ax * cos + plane.ay * sin, plane.dx * cos + plane.dy * sin
            corner = u0 + i0 * du + j0 * dv
            base = math.floor(corner + min(0.0, (width - 1) * du) + min(0.0, (height - 1) * dv))
            first, step = 2 * (p * pairs.shape[1] + base), np.float32(du)
            for j in range(height):
                start, total = np.float32(corner - base + j * dv), out[j0 + j, i0 : i0 + width]
                for i in range(width):
                    u = start + np.float32(i) * step
                    k = np.int32(u)
                    at = first + 2 * np.int64(k)
                    total[i] += item(pairs, at) + (u - np.float32(k)) * item(pairs, at + 1)
    return done


@inline
def _rows_of(plane, j, first, slices):
    """The place of a plane's row among the slices, and the weights of the two slices next to it."""
    z = plane.z0 + j * plane.dz - first
    k = math.floor(z)
    share = np.float32(z - k)
    near = np.float32(1) - share if 0 <= k < slices else np.float32(0)
    far = share if 0 <= k + 1 < slices else np.float32(0)
    return min(max(k, 0), slices - 1), min(max(k + 1, 0), slices - 1), near, far


@jit
def _tilted(counter, quota, tasks, filtered, beams, weights, plane, first, slices, out):
    """Any plane."""
    across, cols = (out.shape[1] + _SIDE - 1) // _SIDE, filtered.shape[1]
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        done += 1
        j0, i0 = task // across * _SIDE, task % across * _SIDE
        height, width = min(_SIDE, out.shape[0] - j0), min(_SIDE, out.shape[1] - i0)
        for slot in beams.slots:
            cos, sin, projection = beams.cos[slot], beams.sin[slot], filtered[slot]
            du = plane.ax * cos + plane.ay * sin
            for j in range(j0, j0 + height):
                low, high, near, far = _rows_of(plane, j, first, slices)
                if near == 0 and far == 0:
                    continue
                near, far = weights[slot] * near, weights[slot] * far
                x, y = plane.x0 + i0 * plane.ax + j * plane.dx, plane.y0 + i0 * plane.ay + j * plane.dy
                start, total = x * cos + y * sin + beams.axis_col, out[j, i0 : i0 + width]
                for i in range(width):
                    u = start + i * du
                    k = math.floor(u)
                    if k < 0 or k + 1 >= cols:
                        if k == -1:
                            share = np.float32(u + 1)
                            total[i] += share * (near * projection[0, low] + far * projection[0, high])
                        elif k == cols - 1:
                            share = np.float32(cols - u)
                            total[i] += share * (near * projection[k, low] + far * projection[k, high])
                        continue
                    share = np.float32(u - k)
                    left = near * projection[k, low] + far * projection[k, high]
                    right = near * projection[k + 1, low] + far * projection[k + 1, high]
                    total[i] += left + share * (right - left)
    return done


@jit
def _sampled(counter, quota, image, padded, plane, first, slices, out):
    """Linear interpolation in an image, which is 0 outside."""
    n, data, half = image.n, image.data, (image.n - 1) / 2
    done = 0
    while done < quota:
        j = fetch_add(counter, 1)
        if j >= out.shape[0]:
            break
        done += 1
        low, high, near, far = _rows_of(plane, j, first, slices)
        if near == 0 and far == 0:
            continue
        for i in range(out.shape[1]):
            col = plane.x0 + i * plane.ax + j * plane.dx + half
            row = half - (plane.y0 + i * plane.ay + j * plane.dy)
            c, r = math.floor(col), math.floor(row)
            total = np.float32(0)
            for rr in range(max(r, 0), min(r + 2, n)):
                for cc in range(max(c, 0), min(c + 2, n)):
                    weight = np.float32((1 - abs(row - rr)) * (1 - abs(col - cc)))
                    pixel = rr * image.pitch + cc * padded
                    total += weight * (near * data[pixel + low] + far * data[pixel + high])
            out[j, i] = total
    return done
