"""Corrections that need many projections at once: the sinograms of an update, made from those of the window."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ministream import config, log
from ministream.errors import ConfigError
from ministream.prep import chain
from ministream.prep.steps import SlabFacts

_LOG = log.get(__name__)

BLOCK = 16
"""Slices gathered together: as many values as a cache line of the window holds."""


class SinogramCorrector:
    """Applies the sinogram steps of `options` to a window of at most `length` projections, on `threads` threads.

    `left_out` are the steps that the last sinograms had too few projections for, each with the number that it needs.

    Raises ConfigError for a wrong parameter, and for a window that is too short for a step.
    """

    def __init__(self, options: config.PrepSection, facts: SlabFacts, *, length: int, threads: int = 1) -> None:
        self._rows = facts.rows
        self._steps = chain.sinogram_steps(options, facts)
        self._pool = ThreadPoolExecutor(threads, "sinograms") if self._steps else None
        self._waiting: set[str] = set()
        self.left_out: tuple[tuple[str, int], ...] = ()
        for name, step in self._steps.items():
            if step.least > length:
                raise ConfigError(
                    f"prep.steps: {name} needs {step.least} projections, the window holds {length}. Use "
                    f"--window-length {step.least} or more, or leave {name} out"
                )

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._steps)

    def clean(
        self,
        data: NDArray[np.float32],
        angles_rad: NDArray[np.float64],
        out: NDArray[np.float32],
        progress: Callable[[], None],
    ) -> None:
        """Write the corrected `data` [projections, cols, padded slices] to `out`; `progress` is called in between."""
        assert self._pool is not None
        order = np.argsort(angles_rad, kind="stable")
        held = len(order)
        self.left_out = tuple((name, step.least) for name, step in self._steps.items() if held < step.least)
        usable = [step.clean for name, step in self._steps.items() if self._has_enough(name, held)]

        def corrected(sinogram: NDArray[np.float32]) -> NDArray[np.float32]:
            for clean in usable:
                sinogram = np.asarray(clean(sinogram), np.float32)
            return sinogram

        for first in range(0, self._rows, BLOCK):
            slices = slice(first, min(first + BLOCK, self._rows))
            sinograms = np.ascontiguousarray(np.moveaxis(data[order, :, slices], 2, 0))
            done = np.stack(list(self._pool.map(corrected, sinograms)), axis=2)
            out[order, :, slices] = done
            progress()

    def _has_enough(self, name: str, held: int) -> bool:
        least = self._steps[name].least
        if held < least and name not in self._waiting:
            self._waiting.add(name)
            _LOG.info("prep.steps: %s needs %d projections, %d are here: it starts later", name, least, held)
        return held >= least
