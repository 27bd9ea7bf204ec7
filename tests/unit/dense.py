"""Small noiseless scans with their dense projection matrix, which the reconstruction is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.config import ReconSection
from ministream.recon import open_algorithm
from ministream.recon.algorithms import Algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window


def matrix(n: int, cols: int, angles_rad: NDArray[np.float64], axis_col: float) -> NDArray[np.float64]:
    """Joseph's A as [projections, cols, rows, columns] float64, straight from the definition."""
    centre = (n - 1) / 2
    row, column = np.mgrid[:n, :n]
    ray = np.arange(cols)[:, None, None]
    blocks = []
    for angle in angles_rad:
        u = (column - centre) * np.cos(angle) + (centre - row) * np.sin(angle) + axis_col
        length = 1 / max(abs(np.cos(angle)), abs(np.sin(angle)))
        blocks.append(length * np.maximum(0, 1 - length * np.abs(ray - u)))
    return np.array(blocks)


def section(kind: str = "sirt", **options: object) -> ReconSection:
    return ReconSection.model_validate({"kind": kind, **options})


def discs(n: int, slices: int, centre: float) -> NDArray[np.float64]:
    """A few overlapping discs, one scale per slice, [n, n, slices]."""
    row, column = np.mgrid[:n, :n] - centre
    image = 1.0 * (row**2 + column**2 < (0.35 * n) ** 2)
    image += 0.5 * ((row - 0.1 * n) ** 2 + (column + 0.05 * n) ** 2 < (0.12 * n) ** 2)
    image -= 0.7 * ((row + 0.15 * n) ** 2 + (column - 0.1 * n) ** 2 < (0.08 * n) ** 2)
    return image[:, :, None] * np.linspace(1, 2, slices)


class Case:
    """A noiseless scan with its dense matrix."""

    def __init__(
        self,
        *,
        n: int = 32,
        cols: int = 35,
        axis_col: float = 16.6,
        projections: int = 40,
        slices: int = 3,
        angles_rad: NDArray[np.float64] | None = None,
    ):
        self.geometry = Geometry(n=n, cols=cols, axis_col=axis_col)
        self.angles_rad = np.arange(projections) * np.pi / projections if angles_rad is None else angles_rad
        self.A = matrix(n, cols, self.angles_rad, axis_col)
        self.truth = discs(n, slices, (n - 1) / 2)
        self.data = np.einsum("purc,rcs->pus", self.A, self.truth)
        self.slices = slices

    def window(self, length: int = 0, step: int = 0) -> Window:
        length = length or len(self.angles_rad)
        return Window(length=length, step=step or length, cols=self.geometry.cols, slices=self.slices)

    def feed(self, window: Window, *indices: int) -> None:
        for index in indices:
            window.slot(index, self.angles_rad[index])[:, : self.slices] = self.data[index]

    def full_window(self) -> Window:
        window = self.window()
        self.feed(window, *range(len(self.angles_rad)))
        return window

    def open(self, kind: str = "sirt", **options: object) -> Algorithm:
        return open_algorithm(section(kind, **options), self.geometry, self.slices)
