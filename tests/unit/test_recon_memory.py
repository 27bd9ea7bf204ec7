"""What `check` predicts is what a slab takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ministream import registry
from ministream.recon import memory, open_algorithm
from ministream.recon.backend.cpu.layout import new_image, padded_slices, rows_collide
from ministream.recon.backend.cpu.projections import Pixels
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from tests.unit.dense import section

N, PROJECTIONS, SLICES = 192, 48, 32


@pytest.mark.parametrize("kind", registry.names("ministream.recon.algorithms"))
def test_peak_memory_is_predicted(kind: str) -> None:
    geometry = Geometry(n=N, cols=N, axis_col=(N - 1) / 2)

    def reconstruct() -> None:
        image = new_image(geometry, SLICES)
        window = Window(length=PROJECTIONS, step=PROJECTIONS, cols=N, slices=SLICES)
        algorithm = open_algorithm(section(kind), geometry, SLICES)
        for index in range(PROJECTIONS):
            window.slot(index, index * np.pi / PROJECTIONS)[:] = 1
        algorithm.update(image, window, 2)

    reconstruct()  # compiles
    tracemalloc.start()
    try:
        reconstruct()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    predicted = memory(section(kind), geometry, SLICES, PROJECTIONS).total
    assert 0.8 * predicted < peak < 1.2 * predicted


@pytest.mark.parametrize("slices", [1, 2, 16, 32, 64, 96, 128])
@pytest.mark.parametrize("n", [64, 511, 512, 1000, 1024])
def test_rows_of_a_new_image_do_not_collide(n: int, slices: int) -> None:
    padded = padded_slices(slices)
    image = new_image(Geometry(n=n, cols=n, axis_col=0.0), slices)
    assert not rows_collide(image.strides[0], 4 * padded)
    assert image.strides[0] - n * padded * 4 < 0.05 * n * padded * 4 + 4096


def test_an_image_of_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="new_image"):
        Pixels.of(np.zeros((4, 4, 2), np.float32).transpose(1, 0, 2))
