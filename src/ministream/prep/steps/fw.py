"""Stripe removal with wavelets and the Fourier transform, Münch et al. 2009, doi:10.1364/OE.17.008567.

Algotom's implementation, with the parameters of tomocupy as defaults.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream.config import Section
from ministream.prep import stripes
from ministream.prep.steps import SlabFacts


class Options(Section):
    """`[prep.fw]`."""

    level: int = Field(default=7, ge=1, description="levels of wavelets; fewer where the sinogram is small")
    sigma: float = Field(default=1.0, gt=0, description="damping: larger removes wider and less constant stripes")
    wavelet: str = Field(default="sym16", description="name of the wavelet in PyWavelets")


class Step:
    """The method for one sinogram after the other."""

    stage: ClassVar[Literal["projection", "sinogram"]] = "sinogram"
    least = 2

    def __init__(self, options: Options, facts: SlabFacts) -> None:
        self._removal = stripes.algotom()
        self._options = options

    def clean(self, sinogram: NDArray[np.float32]) -> NDArray[np.floating]:
        """One sinogram [projections, cols]; one of few projections is mirrored."""
        found: NDArray[np.floating] = stripes.mirrored(
            sinogram,
            self._removal.remove_stripe_based_wavelet_fft,
            level=self._options.level,
            size=self._options.sigma,
            wavelet_name=self._options.wavelet,
        )
        return found
