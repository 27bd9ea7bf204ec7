"""The sinograms of an update: those of the window, or their corrected copy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.assignment import Assignment
from ministream.model import Notice, notice
from ministream.prep.sinograms import SinogramCorrector
from ministream.prep.steps import SlabFacts
from ministream.recon import backend
from ministream.recon.backend import Progress
from ministream.recon.window import Window


class UpdateSinograms:
    """Made anew for every update, from projections that remain as they were received."""

    def __init__(self, assignment: Assignment, *, rows: int | None = None, length: int | None = None) -> None:
        """Of the rank's slab and the configured window, unless `rows` and `length` say otherwise."""
        self._corrector = SinogramCorrector(
            assignment.config.prep,
            SlabFacts(rows=rows or assignment.slab.rows, cols=assignment.scan.cols),
            length=length or assignment.config.window.length,
            threads=assignment.threads,
        )
        self._data: NDArray[np.float32] | None = None
        self._updates = 0

    def of(self, window: Window, progress: Progress) -> Window:
        """The window for an update; the same object where no sinogram step is configured."""
        if not self._corrector.active:
            return window
        if self._data is None:
            self._data = backend.default().new_window(*window.data.shape)
        self._updates += 1
        self._corrector.clean(window.data[: window.held], window.angles_rad, self._data[: window.held], progress)
        return window.with_values(self._data, self._updates)

    def notices(self, window: Window) -> list[Notice]:
        """What the last image lacks of the corrections that were asked for."""
        return [
            notice(
                "correction-missing",
                f"{name} needs {least} projections and {window.held} are in the window: the image is not corrected by "
                "it. Record more projections, or leave it out of prep.steps.",
                projections=window.held,
                needed=least,
            )
            for name, least in self._corrector.left_out
        ]
