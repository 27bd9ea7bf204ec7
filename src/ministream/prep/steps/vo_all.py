"""Removal of all kinds of stripes (large, dead, and small ones by sorting), Vo et al. 2018, doi:10.1364/OE.26.028396.

Algotom's implementation. It compares columns by their
ratio, so that it is given transmissions: line integrals of air are 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream import log
from ministream.config import Section
from ministream.prep import stripes
from ministream.prep.kernels import MIN_TRANSMISSION
from ministream.prep.steps import SlabFacts

_LOG = log.get(__name__)


class Options(Section):
    """`[prep.vo_all]`."""

    snr: float = Field(default=3.0, gt=0, description="sensitivity to large stripes; smaller finds more")
    large: int | None = Field(
        default=None, ge=3, description="columns of the median against large stripes; none: 3 % of all, at least 21"
    )
    small: int | None = Field(
        default=None, ge=3, description="columns of the median against small stripes; none: 1 % of all, at least 5"
    )


class Step:
    """The methods for one sinogram after the other."""

    stage: ClassVar[Literal["projection", "sinogram"]] = "sinogram"
    least = stripes.LEAST_SORTED

    def __init__(self, options: Options, facts: SlabFacts) -> None:
        self._removal = stripes.algotom()
        self._snr = options.snr
        # TomoPy's 61 and 21 columns are for detectors of 2048; on a narrow one they remove the sample's own features
        self._large = options.large or max(21, round(0.03 * facts.cols))
        self._small = options.small or max(5, round(0.01 * facts.cols))
        self._told = False

    def clean(self, sinogram: NDArray[np.float32]) -> NDArray[np.floating]:
        """One sinogram [projections, cols]; one without any noise remains as it is, with a warning."""
        transmissions = np.exp(-sinogram)
        try:
            with np.errstate(all="ignore"):
                cleaned = self._removal.remove_all_stripe(
                    transmissions, snr=self._snr, la_size=self._large, sm_size=self._small
                )
        except ValueError as error:
            if not self._told:
                self._told = True
                _LOG.warning(
                    "prep.vo_all: sinograms without noise are left as they are: %s", " ".join(str(error).split())
                )
            return sinogram
        usable = np.isfinite(cleaned) & (cleaned > MIN_TRANSMISSION)
        found: NDArray[np.floating] = -np.log(np.where(usable, cleaned, transmissions))
        return found
