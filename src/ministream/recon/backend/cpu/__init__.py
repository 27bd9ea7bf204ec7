"""The CPU backend: NumPy arrays, numba kernels, Python threads. This module implements `Backend`."""

from __future__ import annotations

from ministream.recon.backend.cpu.arrays import (
    clear,
    combine,
    copy,
    denoise,
    divide,
    dot,
    filter,
    host,
    limit,
    mask,
    occupied,
    positive_sums,
    scale,
    weigh,
)
from ministream.recon.backend.cpu.layout import new_dual, new_image, new_sinogram, new_window, padded_slices
from ministream.recon.backend.cpu.planes import image_plane, row_plane, slab_plane
from ministream.recon.backend.cpu.projections import back, column_sums, forward, row_sums
from ministream.recon.backend.cpu.startup import warm_up, warm_up_planes
from ministream.recon.backend.cpu.threads import get_threads, set_threads

__all__ = [
    "back",
    "clear",
    "column_sums",
    "combine",
    "copy",
    "denoise",
    "divide",
    "dot",
    "filter",
    "forward",
    "get_threads",
    "host",
    "image_plane",
    "limit",
    "mask",
    "new_dual",
    "new_image",
    "new_sinogram",
    "new_window",
    "occupied",
    "padded_slices",
    "positive_sums",
    "row_plane",
    "row_sums",
    "scale",
    "set_threads",
    "slab_plane",
    "warm_up",
    "warm_up_planes",
    "weigh",
]
