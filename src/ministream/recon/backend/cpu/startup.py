"""Compiles or loads all kernels that a slab needs, before its first frame arrives."""

from __future__ import annotations

import numpy as np

from ministream import jit
from ministream.recon.backend.cpu import arrays, planes, projections
from ministream.recon.backend.cpu.layout import aligned_zeros, padded_slices
from ministream.recon.geometry import Beams
from ministream.recon.planes import Plane


def warm_up(slices: int) -> None:
    """Compile or load every kernel that a slab of `slices` slices uses, shared with the node's other processes."""
    beams, ones = Beams.at(np.zeros(1), 0.5), np.ones((2, 2), np.float32)
    widths = sorted({lanes for lanes, _, _ in projections.lane_blocks(padded_slices(slices))})
    image, sinogram = aligned_zeros((2, 2, widths[-1])), aligned_zeros((1, 2, widths[-1]))
    per_slice, dual = np.ones(widths[-1]), aligned_zeros((2, *image.shape))

    def forward() -> None:
        for width in widths:
            projections.forward(aligned_zeros((2, 2, width)), aligned_zeros((1, 2, width)), beams)

    def back() -> None:
        for width in widths:
            projections.back(aligned_zeros((1, 2, width)), aligned_zeros((2, 2, width)), beams, factor=ones)

    # those that take longest first
    jit.compile_all(
        {
            "forward": forward,
            "back": back,
            "denoise": lambda: arrays.denoise(image, image, dual, threshold=1.0, passes=1),
            "column_sums": lambda: projections.column_sums(beams, 2, 2),
            "row_sums": lambda: projections.row_sums(beams, ones > 0, 2),
            "dot": lambda: arrays.dot(image, image),
            "divide": lambda: arrays.divide(sinogram, sinogram, beams, per_slice.astype(np.float32)),
            "weigh": lambda: arrays.weigh(sinogram, beams, ones),
            "combine": lambda: arrays.combine(image, image, beta=per_slice),
        }
    )


def warm_up_planes() -> None:
    """Compile or load the kernels of planes, shared with the node's other processes."""
    beams, sinogram, ones = Beams.at(np.zeros(1), 0.5), aligned_zeros((1, 2, 1)), np.ones(1, np.float32)
    flat = Plane.horizontal(2, 0.0)
    jit.compile_all(
        {
            "tilted": lambda: planes.slab_plane(sinogram, beams, ones, flat, 0, 1),
            "line": lambda: planes.slab_plane(sinogram, beams, ones, Plane.along_x(2, 1, 0.0), 0, 1),
            "flat": lambda: planes.row_plane(sinogram[:, :, 0], beams, flat),
            "sampled": lambda: planes.image_plane(aligned_zeros((2, 2, 1)), flat, 0, 1),
        }
    )
