"""Passes over sinograms between the projections."""

from __future__ import annotations

import numpy as np

from ministream.jit import jit
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
