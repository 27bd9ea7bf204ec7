"""Stripe removal against ring artefacts: stripes are detector columns that are always too bright or too dark."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.errors import ConfigError

SHORTEST = 64
"""Minimum number of projections for two wavelet levels, the fewest that are useful; fewer are mirrored."""

# The parameters of the distributor of aps-mini-apps; Algotom uses as many levels as the sinogram allows.
_METHOD = {"level": 7, "size": 1, "wavelet_name": "sym16"}


LEAST_SORTED = 30
"""Methods that sort the values of a column tell a stripe from the sample from about this many projections on."""


def algotom() -> Any:
    """Algotom's stripe removal methods. Raises ConfigError without the extra `stripes`."""
    # PyWavelets warns of levels with boundary effects in every coefficient; mirroring makes them harmless. The filter
    # stays, because changing it is not safe while other threads run.
    warnings.filterwarnings("ignore", "Level value of", UserWarning)
    try:
        return importlib.import_module("algotom.prep.removal")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"removing stripes needs the Python package {error.name!r}: pip install 'ministream[stripes]'"
        ) from error


def mirrored(sinogram: NDArray[np.float32], method: Any, **parameters: Any) -> NDArray[np.floating]:
    """The result of a wavelet `method` for a sinogram [projections, cols], mirrored where it is short."""
    missing = max(0, SHORTEST - len(sinogram))
    longer = np.pad(sinogram, ((missing // 2, missing - missing // 2), (0, 0)), mode="symmetric")
    cleaned: NDArray[np.floating] = method(longer, **parameters)
    return cleaned[missing // 2 :][: len(sinogram), : sinogram.shape[1]]


class StripeFilter:
    """Removes narrow features common to all projections [rows, cols], with the Fourier-wavelet method.

    Münch et al. 2009, doi:10.1364/OE.17.008567, as Algotom implements it (`remove_stripe_based_wavelet_fft`). Only many
    projections together distinguish a stripe from the sample. Raises ConfigError without the extra `stripes`.
    """

    def __init__(self) -> None:
        self._removal = algotom()

    def clean(self, projections: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The projections without their stripes, found row by row in all projections together."""
        block = np.stack(projections)
        for row in range(block.shape[1]):
            block[:, row] = mirrored(block[:, row], self._removal.remove_stripe_based_wavelet_fft, **_METHOD)
        return list(block)
