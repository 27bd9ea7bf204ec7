"""Passes over arrays between the projections: slices innermost, one task per row (a projection, an image row).

An array comes as its memory in one piece with `pitch`, the distance of rows, and `width`, the floats of a row; the
slice of float k is k % slices.
"""

from __future__ import annotations

import math

import numpy as np

from ministream.jit import inline, jit
from ministream.recon.kernels.vector import fetch_add


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
    """y = alpha[slice] x + beta[slice] y."""
    slices = alpha.size
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        for start in range(0, width, slices):
            for k in range(slices):
                here = row * y_pitch + start + k
                y[here] = alpha[k] * x[row * x_pitch + start + k] + beta[k] * y[here]
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
        for start in range(0, width, slices):
            for k in range(slices):
                sums[row, k] += np.float64(x[row * x_pitch + start + k]) * np.float64(y[row * y_pitch + start + k])
    return done


@inline
def _divergence(dual, row, column, k):
    """div p at one pixel: backward differences, p being zero outside; p = dual[0] down the rows, dual[1] along them."""
    value = dual[0, row, column, k] + dual[1, row, column, k]
    if row > 0:
        value -= dual[0, row - 1, column, k]
    if column > 0:
        value -= dual[1, row, column - 1, k]
    return value


@jit
def tv_primal(counter, quota, tasks, noisy, noisy_pitch, image, image_pitch, dual, threshold):
    """image = noisy + threshold · div(dual)."""
    n, slices = dual.shape[1], dual.shape[3]
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        for column in range(n):
            for k in range(slices):
                at = column * slices + k
                total = noisy[row * noisy_pitch + at] + threshold * _divergence(dual, row, column, k)
                image[row * image_pitch + at] = total
    return done


@jit
def tv_dual(counter, quota, tasks, image, pitch, dual, step):
    """dual = the projection of dual + step · grad(image) on |dual| <= 1, pixel by pixel; forward differences."""
    n, slices = dual.shape[1], dual.shape[3]
    done = 0
    while done < quota:
        row = fetch_add(counter, 1)
        if row >= tasks:
            break
        done += 1
        for column in range(n):
            for k in range(slices):
                here = row * pitch + column * slices + k
                down, right = dual[0, row, column, k], dual[1, row, column, k]
                if row + 1 < n:
                    down += step * (image[here + pitch] - image[here])
                if column + 1 < n:
                    right += step * (image[here + slices] - image[here])
                scale = 1 / math.sqrt(max(np.float32(1), down * down + right * right))
                dual[0, row, column, k], dual[1, row, column, k] = down * scale, right * scale
    return done
