"""Optional corrections, one per module: `Options`, and `Step` with `stage` "projection" or "sinogram".

A projection step changes every projection once, as transmissions, before the logarithm. A sinogram step needs many
projections at once: it makes the sinograms of an update from those of the window, which remain as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class SlabFacts:
    """What a step may know: the detector rows of this rank, the columns, and the scan's units where they are known."""

    rows: int
    cols: int
    pixel_size_um: float | None = None
    energy_kev: float | None = None


class ProjectionStep(Protocol):
    """Created as `Step(options, facts)`."""

    stage: ClassVar[Literal["projection", "sinogram"]]

    def __init__(self, options: Any, facts: SlabFacts) -> None: ...

    def clean_flats(self, flats: NDArray[Any]) -> None:
        """Correct the flats [frames, rows, cols] of one set in place, before their mean is taken."""
        ...

    def apply(self, pixels: NDArray[np.float32]) -> int:
        """Correct the transmissions [rows, cols] of one projection in place; returns the number of mended pixels."""
        ...


class SinogramStep(Protocol):
    """Created as `Step(options, facts)`. `least` projections are needed; with fewer the step is left out."""

    stage: ClassVar[Literal["projection", "sinogram"]]
    least: int

    def __init__(self, options: Any, facts: SlabFacts) -> None: ...

    def clean(self, sinogram: NDArray[np.float32]) -> NDArray[np.floating]:
        """The corrected line integrals [projections, cols], in the order of angles; called from several threads."""
        ...
