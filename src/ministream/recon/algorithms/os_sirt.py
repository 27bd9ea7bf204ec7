"""OS-SIRT: SIRT on subsets of the window, one after the other. With one projection per subset it is SART.

A subset takes every `subsets`-th projection in the order of angles; each has its own column sums. One iteration goes
through all subsets, so every projection is used once forward and once back, as in SIRT, but the image has changed
`subsets` times. The residual norm is the sum over the subsets, each measured before its step.

Wang & Jiang, J. X-Ray Sci. Technol. 12 (2004) 169; SART: Andersen & Kak, Ultrason. Imaging 6 (1984) 81.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream.recon.algorithms._iterative import Bounded, Clock, Iterative
from ministream.recon.backend import Image, Progress
from ministream.recon.window import Window

_GOLDEN = (np.sqrt(5) - 1) / 2


class Options(Bounded):
    """OS-SIRT's own keys of `[recon]`."""

    relaxation: float = Field(default=1.0, gt=0, lt=2, description="λ; noisy data want less than SIRT's")
    subsets: int = Field(default=8, ge=0, description="subsets of the window; 0: one projection each (SART)")


class Algorithm(Iterative[Options]):
    """OS-SIRT on a slab; a subset's column sums are computed when it is used, at the cost of one more slice."""

    def iterate(self, image: Image, window: Window, clock: Clock, progress: Progress) -> float:
        """Process every subset once."""
        norm2 = 0.0
        for slots in subsets(window.angles_rad, self.options.subsets):
            beams = self.beams(window, slots)
            with clock.timed("forward"):
                self.subtract(image, window, beams, progress)
                norm2 += float(self.backend.weigh(self.residual, beams, self.weights.rows).sum())
            with clock.timed("back"):
                self.backend.back(
                    self.residual,
                    image,
                    beams,
                    factor=np.float32(self.options.relaxation) * self.weights.columns_of(beams),
                    lower=self.options.floor,
                    upper=self.options.ceiling,
                    progress=progress,
                )
        return norm2


def subsets(angles_rad: NDArray[np.float64], count: int) -> list[NDArray[np.int64]]:
    """Slots of the projections of each subset, in the order of use: consecutive subsets are far apart in angle."""
    ordered = np.argsort(np.mod(angles_rad, np.pi), kind="stable")
    count = min(count or len(ordered), len(ordered))
    order = np.argsort(np.mod(np.arange(count) * _GOLDEN, 1.0), kind="stable")
    return [ordered[first::count] for first in order]
