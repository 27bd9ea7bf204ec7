"""Intensity scaling by air: each row is divided by a line between the mean transmissions of its left and right edge.

Corrects a beam that changes while the scan runs, where both edges of every projection see air (TomoPy's
`normalize_bg`). An edge without light is taken as 1.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream.config import Section
from ministream.errors import ConfigError
from ministream.prep.steps import SlabFacts


class Options(Section):
    """`[prep.air]`."""

    width: int = Field(default=10, ge=1, description="columns of air at either edge")


class Step:
    """Division by the air at both edges."""

    stage: ClassVar[Literal["projection", "sinogram"]] = "projection"

    def __init__(self, options: Options, facts: SlabFacts) -> None:
        if 2 * options.width > facts.cols:
            raise ConfigError(
                f"prep.air.width = {options.width}: the projections have {facts.cols} columns, expected at most half "
                f"of them at either edge. Use --set prep.air.width={max(1, facts.cols // 20)}"
            )
        self._width = options.width
        self._across = np.linspace(0.0, 1.0, facts.cols, dtype=np.float32)

    def clean_flats(self, flats: NDArray[Any]) -> None:
        """Flats remain as they are."""

    def apply(self, pixels: NDArray[np.float32]) -> int:
        """Scale every row; no pixel counts as mended."""
        left, right = (
            np.where((mean := edge.mean(axis=1, dtype=np.float64)) > 0, mean, 1.0).astype(np.float32)[:, None]
            for edge in (pixels[:, : self._width], pixels[:, -self._width :])
        )
        pixels /= left + (right - left) * self._across
        return 0
