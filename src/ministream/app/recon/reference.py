"""Image quality during the run, against the scan's ground truth or against a reference volume."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ministream import log
from ministream.app.recon.assignment import Assignment
from ministream.errors import InputError, MinistreamError
from ministream.model import Slab
from ministream.parallel.mpi import Comm
from ministream.quality import QualitySums, check_possible, slab_quality, value_range
from ministream.source import truth
from ministream.storage import Volume

_LOG = log.get(__name__)

Slice = NDArray[np.float32]


class ReferenceComparison:
    """Compares slice by slice, so that no second volume is in memory; every method is collective.

    `known`: a ground truth or a reference exists. `live`: the user named a reference volume, and every update is
    compared with it. `newest`, on rank 0, is the quality of the latest compared update.

    Raises InputError for a reference whose shape differs from the scan, ConfigError where a package is missing; without
    a user-named reference a missing package is only a warning.
    """

    def __init__(self, comm: Comm, assignment: Assignment) -> None:
        self._comm, self._slab = comm, assignment.slab
        self._ideal: Callable[[int, float], Slice] | None = None
        self.live = assignment.config.output.reference is not None
        self.newest: Mapping[str, float] = {}
        if self.live or assignment.scan.truth is not None:
            try:
                with comm.together():
                    check_possible(_shape(assignment))
                    self._ideal = _reference(assignment) if self.live else functools.partial(_truth, assignment)
            except MinistreamError as error:
                if self.live:
                    raise
                self._give_up(error)

    @property
    def known(self) -> bool:
        """Whether a ground truth or a reference exists."""
        return self._ideal is not None

    def sums(self, image: NDArray[np.float32], at: float) -> QualitySums | None:
        """Compare the image [n, n, slices] of every rank with the ground truth at a time, or with the reference.

        `at` is the share of the scan that was acquired at the middle of the window. Returns None if that fails, for
        instance because the reference was removed: logged once, the run continues.
        """
        try:
            return self._compared(image, at)
        except MinistreamError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: MinistreamError) -> None:
        self._ideal, self.live = None, False
        if self._comm.rank == 0:
            _LOG.warning("quality is not measured: %s", error)

    def _compared(self, image: NDArray[np.float32], at: float) -> QualitySums:
        ideal, first = self._ideal, self._slab.first
        assert ideal is not None
        data_range = self._data_range
        with self._comm.together():
            mine = QualitySums.total(
                slab_quality(image[None, :, :, k], ideal(first + k, at), data_range) for k in range(self._slab.rows)
            )
        return QualitySums.total(self._comm.allgather(mine))

    @functools.cached_property
    def _data_range(self) -> float:
        assert self._ideal is not None
        with self._comm.together():
            limits = [value_range(self._ideal(k, 0.0)) for k in range(self._slab.first, self._slab.stop)]
        lows, highs = zip(*(pair for part in self._comm.allgather(limits) for pair in part), strict=True)
        return float(max(highs) - min(lows))


def _shape(assignment: Assignment) -> tuple[int, int]:
    return assignment.n, assignment.n


def _truth(assignment: Assignment, k: int, at: float) -> Slice:
    known = truth(assignment.scan, Slab(k, 1), n=assignment.n, at=at)
    assert known is not None
    return known


def _reference(assignment: Assignment) -> Callable[[int, float], Slice]:
    path = assignment.config.output.reference
    assert path is not None
    with Volume(path) as volume:
        shape = (assignment.scan.rows, *_shape(assignment))
        if volume.shape != shape:
            raise InputError(
                f"{path}: the reference is {list(volume.shape)}, expected {list(shape)}. Choose another --reference."
            )

    def plane(k: int, _at: float) -> Slice:
        with Volume(path) as volume:
            return volume.plane(0, k)[None] * np.float32(volume.per_pixel)

    return plane
