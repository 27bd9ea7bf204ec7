"""Removal of stripes, what makes rings in the image: columns of the detector that are always too bright or too dark."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.errors import ConfigError

SHORTEST = 64
"""Projections without which two wavelet levels, the fewest that do any good, do not exist; fewer are mirrored."""

# As the distributor of aps-mini-apps asks for them; Algotom takes as many levels as the sinogram allows.
_METHOD = {"level": 7, "size": 1, "wavelet_name": "sym16"}


class StripeFilter:
    """Removes from projections [rows, cols] what all of them share that is narrow: the Fourier-wavelet method.

    Münch et al. 2009, doi:10.1364/OE.17.008567, as Algotom implements it (`remove_stripe_based_wavelet_fft`). A stripe
    is told from the sample by many projections, never by one. Raises ConfigError without the extra `stripes`.
    """

    def __init__(self) -> None:
        try:
            self._removal: Any = importlib.import_module("algotom.prep.removal")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"removing stripes needs the Python package {error.name!r}: pip install 'ministream[stripes]'"
            ) from error

    def clean(self, projections: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The projections without their stripes, found row by row in all of them together."""
        block = np.stack(projections)
        missing = max(0, SHORTEST - len(block))
        mirrored = np.pad(block, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)), mode="symmetric")
        for row in range(block.shape[1]):
            block[:, row] = self._sinogram(mirrored[:, row])[missing // 2 :][: len(block)]
        return list(block)

    def _sinogram(self, sinogram: NDArray[np.float32]) -> NDArray[np.float64]:
        with warnings.catch_warnings():
            # PyWavelets on levels at which every coefficient sees an edge; the mirroring makes those harmless
            warnings.filterwarnings("ignore", "Level value of", UserWarning)
            cleaned: NDArray[np.float64] = self._removal.remove_stripe_based_wavelet_fft(sinogram, **_METHOD)
        return cleaned[: sinogram.shape[0], : sinogram.shape[1]]
