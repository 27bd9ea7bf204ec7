"""SART: OS-SIRT with one projection per subset. One iteration uses every projection of the window once.

Andersen & Kak, Ultrason. Imaging 6 (1984) 81.
"""

from __future__ import annotations

from pydantic import Field

from ministream.recon.algorithms import os_sirt
from ministream.recon.algorithms._iterative import Bounded
from ministream.recon.backend import Backend
from ministream.recon.geometry import Geometry


class Options(Bounded):
    """SART's own keys of `[recon]`."""

    relaxation: float = Field(default=0.5, gt=0, lt=2, description="λ; 1 fits each projection in full as it comes")


class Algorithm(os_sirt.Algorithm):
    """SART on a slab."""

    def __init__(self, geometry: Geometry, slices: int, options: Options, backend: Backend) -> None:
        super().__init__(geometry, slices, os_sirt.Options(**options.model_dump(), subsets=0), backend)
