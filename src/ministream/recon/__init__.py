"""Reconstruction of one slab: geometry, window, algorithms, and compute backends."""

from __future__ import annotations

from typing import cast

from ministream import config, registry
from ministream.recon.algorithms import Algorithm
from ministream.recon.backend import Backend, default
from ministream.recon.footprint import Memory, memory_bytes
from ministream.recon.geometry import Geometry
from ministream.recon.weights import Sharing


def open_algorithm(
    section: config.ReconSection,
    geometry: Geometry,
    slices: int,
    sharing: Sharing | None = None,
    backend: Backend | None = None,
) -> Algorithm:
    """Create the algorithm selected by `[recon]`, for a slab of `slices` slices.

    `sharing` are the ranks that share work with this one. Its images are created by its `backend`, by default the
    one of this machine.

    Raises ConfigError for an unknown algorithm or an unknown key.
    """
    module = registry.load("ministream.recon.algorithms", section.kind)
    options = config.parse(module.Options, section.options, f"[recon] {section.kind}")
    algorithm = cast(Algorithm, module.Algorithm(geometry, slices, options, backend or default()))
    if sharing is not None:
        algorithm.sharing = sharing
    return algorithm


def memory(section: config.ReconSection, geometry: Geometry, slices: int, length: int) -> Memory:
    """Memory that the algorithm selected by `[recon]` needs for a slab of `slices` slices and a window of `length`."""
    algorithm = registry.load("ministream.recon.algorithms", section.kind).Algorithm
    return memory_bytes(
        geometry,
        slices,
        length,
        images=algorithm.images,
        residuals=algorithm.residuals,
        per_pixel=algorithm.per_pixel,
    )
