"""Scans with something odd about them, and what the product makes of them in one process.

All show two unlike disks, so that a mirrored, turned or scaled image is seen. A scan is what a source or a wire hands
on: arrays, not files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream import config
from ministream.app.recon.assignment import assign
from ministream.app.recon.gate import ScanGate, mask_of
from ministream.errors import MinistreamError
from ministream.model import Frame, FrameKind, Notice, Scan
from ministream.parallel import mpi
from ministream.parallel.row_scatter import SlabFrame
from ministream.plausibility.projections import never_written
from ministream.plausibility.record import SkippedProjection
from ministream.prep.corrections import Corrector
from ministream.recon import backend as backends
from ministream.recon import open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window

COLS, ROWS, ANGLES = 64, 4, 90
DEGREES = np.arange(ANGLES) * 2.0
DISKS = ((-9.0, 6.0, 12.0, 0.020), (14.0, -10.0, 6.0, 0.040))
"""x, y and radius in pixels from the axis, attenuation per pixel."""
FLAT, DARK = 20000, 100


def line_integrals(
    degrees: Any, *, cols: int = COLS, rows: int = ROWS, axis: float | None = None, disks: Any = DISKS
) -> NDArray[np.float64]:
    """Exact line integrals [angle, row, col]."""
    theta = np.radians(np.asarray(degrees, float))[:, None]
    axis = (cols - 1) / 2 if axis is None else axis
    total = np.zeros((theta.size, cols))
    for x, y, radius, mu in disks:
        distance = np.arange(cols) - (x * np.cos(theta) + y * np.sin(theta) + axis)
        total += 2 * mu * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return np.repeat(total[:, None, :], rows, axis=1)


def counts(integrals: NDArray[np.float64], flat: Any = FLAT, dtype: Any = np.uint16) -> NDArray[Any]:
    """What a detector counts behind these line integrals."""
    return np.rint(flat * np.exp(-integrals) + DARK).astype(dtype)


def truth(n: int = COLS, disks: Any = DISKS) -> NDArray[np.float32]:
    """The slice [n, n], attenuation per pixel."""
    axis = np.arange(n) - (n - 1) / 2
    x, y = axis[None, :], -axis[:, None]
    return sum(mu * ((x - cx) ** 2 + (y - cy) ** 2 <= r * r) for cx, cy, r, mu in disks).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class OddScan:
    """A scan as arrays: `data` [projection, row, col], `flats` and `darks` [image, row, col] and where they belong."""

    data: NDArray[Any]
    degrees: NDArray[np.float64]
    flats: NDArray[Any] | None = None
    darks: NDArray[Any] | None = None
    flat_positions: tuple[float, ...] = ()
    axis: float | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def scan(self) -> Scan:
        projections, rows, cols = self.data.shape
        return Scan(
            scan_id="odd",
            rows=rows,
            cols=cols,
            projections=projections,
            flats=0 if self.flats is None else len(self.flats),
            darks=0 if self.darks is None else len(self.darks),
            dtype=self.data.dtype.str,
            axis_col=self.axis,
            notices=self.notices,
        )

    def frames(self) -> Iterator[Frame]:
        for index, pixels in enumerate([] if self.darks is None else self.darks):
            yield self._frame(FrameKind.DARK, index, pixels)
        for index, pixels in enumerate([] if self.flats is None else self.flats):
            position = self.flat_positions[index] if self.flat_positions else 0.0
            yield replace(self._frame(FrameKind.FLAT, index, pixels), position=position)
        for index, pixels in enumerate(self.data):
            angle = float(np.radians(self.degrees[index]))
            yield replace(self._frame(FrameKind.PROJECTION, index, pixels), angle_rad=angle, position=float(index))

    @staticmethod
    def _frame(kind: FrameKind, index: int, pixels: NDArray[Any]) -> Frame:
        return Frame(kind=kind, index=index, angle_rad=0.0, pixels=pixels, acquired_s=time.time())


def good(**changes: Any) -> OddScan:
    """A scan that nothing is wrong with, but for `changes`."""
    same = np.ones((5, ROWS, COLS), np.uint16)
    facts: dict[str, Any] = {
        "data": counts(line_integrals(DEGREES)),
        "degrees": DEGREES,
        "flats": (FLAT + DARK) * same,
        "darks": DARK * same,
    }
    return OddScan(**facts | changes)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a scan: a volume [slice, row, col], or the error that refused it; what was noticed either way."""

    volume: NDArray[np.float32] | None = None
    refused: str = ""
    notices: dict[str, Notice] = field(default_factory=dict)
    flaw: str = ""
    used: int = 0

    def correlation(self, with_truth: NDArray[np.float32] | None = None, *, slices: Any = slice(None)) -> float:
        """The smallest correlation of the slices with the truth inside the circle."""
        assert self.volume is not None, self.refused
        expected = truth() if with_truth is None else with_truth
        axis = np.arange(len(expected)) - (len(expected) - 1) / 2
        inside = axis[:, None] ** 2 + axis**2 <= (len(expected) / 2) ** 2
        return min(
            float(np.corrcoef(image[inside], expected[inside])[0, 1]) for image in np.atleast_3d(self.volume[slices])
        )

    def level(self, disk: tuple[float, float, float, float], n: int = COLS) -> float:
        """The mean attenuation inside a disk, a pixel from its rim, over the true one."""
        assert self.volume is not None, self.refused
        x, y, radius, mu = disk
        axis = np.arange(n) - (n - 1) / 2
        inside = (axis[None, :] - x) ** 2 + (-axis[:, None] - y) ** 2 <= (radius - 1) ** 2
        return float(self.volume[:, inside].mean()) / mu


def reconstruct(odd: OddScan, **tables: Any) -> Result:
    """The scan through correction, gate and 60 iterations of SIRT; `tables` are the configuration's."""
    settings = config.load(None, tables)
    comm = mpi.world()
    assignment = assign(0, 1, settings, odd.scan, threads=1)
    rows, cols = odd.scan.rows, odd.scan.cols
    corrector = Corrector(rows=rows, cols=cols, options=settings.prep, mask=mask_of(settings.prep.mask, assignment))
    gate = ScanGate(comm, assignment, corrector)
    window = Window(length=odd.scan.projections, step=odd.scan.projections, cols=cols, slices=rows)
    unwritten = []
    try:
        gate.started()
        for frame in odd.frames():
            if frame.kind is not FrameKind.PROJECTION:
                corrector.add(frame.kind, frame.pixels, frame.position)
            elif never_written(frame.pixels):
                unwritten.append(SkippedProjection(frame.index, frame.position))
            else:
                _correct(gate, corrector, window, frame)
        gate.updated()
        gate.conclude(unwritten)
    except MinistreamError as error:
        return Result(refused=str(error), notices=_by_code(gate))
    geometry = Geometry(n=assignment.n, cols=cols, axis_col=assignment.axis_col)
    engine = backends.default()
    image = engine.new_image(geometry, rows)
    open_algorithm(settings.recon, geometry, rows).update(image, window, 60)
    volume = np.moveaxis(engine.host(image)[:, :, :rows], 2, 0)
    return Result(volume=volume, notices=_by_code(gate), flaw=gate.flaw, used=window.held)


def _correct(gate: ScanGate, corrector: Corrector, window: Window, frame: Frame) -> None:
    if not corrector.settled:
        gate.settle()
    rows = SlabFrame(**{name: getattr(frame, name) for name in SlabFrame.__slots__})
    gate.accepted(rows, corrector.correct(frame.pixels, window.slot(frame.index, frame.angle_rad), frame.position))


def _by_code(gate: ScanGate) -> dict[str, Notice]:
    return {notice.code: notice for notice in gate.book.notices}
