"""Compiles or loads all kernels that a slab needs, before its first frame arrives."""

from __future__ import annotations

import numpy as np

from ministream import jit
from ministream.recon.backend.cpu import arrays, projections
from ministream.recon.backend.cpu.layout import aligned_zeros, padded_slices
from ministream.recon.geometry import Beams


def warm_up(slices: int) -> None:
    """Compile or load every kernel that a slab of `slices` slices uses; one process of a node at a time."""
    beams, ones = Beams.at(np.zeros(1), 0.5), np.ones((2, 2), np.float32)
    with jit.one_compiles_first():
        for width in sorted({lanes for lanes, _, _ in projections.lane_blocks(padded_slices(slices))}):
            image, sinogram = aligned_zeros((2, 2, width)), aligned_zeros((1, 2, width))
            projections.forward(image, sinogram, beams)
            projections.back(sinogram, image, beams, factor=ones)
        projections.column_sums(beams, 2, 2)
        projections.row_sums(beams, ones > 0, 2)
        arrays.weigh(sinogram, beams, ones)
        arrays.divide(sinogram, sinogram, beams, np.ones(width, np.float32))
        arrays.combine(image, image, beta=arrays.dot(image, image))
        arrays.denoise(image, image, aligned_zeros((2, *image.shape)), threshold=1.0, passes=1)
