"""Passes over arrays between the projections: slices innermost, one task per row (a projection, an image row).

An array is passed as contiguous memory with `pitch`, the distance of rows, and `width`, the floats of a row; the
slice of float k is k % slices.
"""

from __future__ import annotations

import math

import numpy as np

from ministream.jit import inline, jit
from ministream.recon.backend.cpu.vector import fetch_add


@jit
def weigh(counter, quota, tasks, sinogram, slots, factor, norms):
    """norms[slot, slice] = Σ r² over a projection's columns, then r *= factor[slot, column]."""
    cols, slices = sinogram.shape[1], sinogram.shape[2]
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        done += 1
        slot = slots[task]
        norms[slot, :] = 0.0
        for u in range(cols):
            weight = factor[slot, u]
            for k in range(slices):
                value = sinogram[slot, u, k]
                norms[slot, k] += np.float64(value) * np.float64(value)
                sinogram[slot, u, k] = value * weight
    return done


@jit
def divide(counter, quota, tasks, sinogram, slots, measured, smallest, norms):
    """norms[slot, slice] = Σ (b - Ax)², then Ax becomes max(b, 0) / Ax, 0 where Ax is below smallest[slice]."""
    cols, slices = sinogram.shape[1], sinogram.shape[2]
    done = 0
    while done < quota:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        done += 1
        slot = slots[task]
        norms[slot, :] = 0.0
        for u in range(cols):
            for k in range(slices):
                b, value = measured[slot, u, k], sinogram[slot, u, k]
                difference = np.float64(b) - np.float64(value)
                norms[slot, k] += difference * difference
                sinogram[slot, u, k] = max(b, np.float32(0)) / value if value > smallest[k] else np.float32(0)
    return done


@jit
def combine(counter, quota, tasks, y, y_pitch, x, x_pitch, width, alpha, beta):
    """y = alpha x + beta y, where factor k belongs to floats k, k + alpha.size… of a row."""
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        to, of = _row(y, y_pitch, row, width), _row(x, x_pitch, row, width)
        for start in range(0, width, alpha.size):
            here, there = to[start : start + alpha.size], of[start : start + alpha.size]
            for k in range(here.size):
                here[k] = alpha[k] * there[k] + beta[k] * here[k]
    return done


@jit
def dot(counter, quota, tasks, y, y_pitch, x, x_pitch, width, sums):
    """sums[row, slice] = Σ x y over the row."""
    slices = sums.shape[1]
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        left = _row(y, y_pitch, row, width).reshape((width // slices, slices))
        right = _row(x, x_pitch, row, width).reshape((width // slices, slices))
        total = sums[row]
        for column in range(left.shape[0]):
            for k in range(slices):
                total[k] += np.float64(left[column, k]) * np.float64(right[column, k])
    return done


@jit
def tv_primal(counter, quota, tasks, noisy, noisy_pitch, image, image_pitch, dual, threshold):
    """image = noisy + threshold · div(dual); dual[0] goes down the rows, dual[1] along them, both are 0 outside.

    The divergence is made of backward differences.
    """
    slices = dual.shape[3]
    width = dual.shape[2] * slices
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        of, to = _row(noisy, noisy_pitch, row, width), _row(image, image_pitch, row, width)
        down, along = dual[0, row].reshape(width), dual[1, row].reshape(width)
        above, inside = dual[0, max(row - 1, 0)].reshape(width), np.float32(row > 0)
        for k in range(slices):
            to[k] = of[k] + threshold * (down[k] + along[k] - inside * above[k])
        of, to, down, above, here = of[slices:], to[slices:], down[slices:], above[slices:], along[slices:]
        for k in range(width - slices):
            to[k] = of[k] + threshold * (down[k] + here[k] - inside * above[k] - along[k])
    return done


@jit
def tv_dual(counter, quota, tasks, image, pitch, dual, step):
    """dual = the projection of dual + step · grad(image) on |dual| <= 1, pixel by pixel; forward differences."""
    slices = dual.shape[3]
    width = dual.shape[2] * slices
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        here, below = _row(image, pitch, row, width), _row(image, pitch, min(row + 1, tasks - 1), width)
        down, along = dual[0, row].reshape(width), dual[1, row].reshape(width)
        right = here[slices:]
        for k in range(width - slices):
            d, a = down[k] + step * (below[k] - here[k]), along[k] + step * (right[k] - here[k])
            down[k], along[k] = _shortened(d, a)
        # no difference beyond the last pixel
        here, below, down, along = here[-slices:], below[-slices:], down[-slices:], along[-slices:]
        for k in range(slices):
            down[k], along[k] = _shortened(down[k] + step * (below[k] - here[k]), along[k])
    return done


@inline
def _row(data, pitch, row, width):
    """A row's floats. LLVM can vectorise loops over such a view."""
    return data[row * pitch : row * pitch + width]


@inline
def _shortened(down, along):
    """The vector, limited to length 1."""
    scale = 1 / math.sqrt(max(np.float32(1), down * down + along * along))
    return down * scale, along * scale
