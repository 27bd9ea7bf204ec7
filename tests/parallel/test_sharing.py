"""What ranks compute in parts: the same numbers as on one rank, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from ministream import config, registry
from ministream.parallel.mpi import Comm
from ministream.recon import open_algorithm
from ministream.recon.algorithms import Algorithm
from ministream.recon.backend.cpu import new_image
from ministream.recon.geometry import Geometry
from ministream.recon.weights import Weights
from ministream.recon.window import Window

pytestmark = pytest.mark.mpi

# 21 pixels are no multiple of 2 or 4 ranks
GEOMETRY = Geometry(n=21, cols=21, axis_col=9.5)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_rows_come_together_in_their_order(comm: Comm, count: int) -> None:
    all_rows = np.arange(count * 6, dtype=np.float32).reshape(count, 3, 2)
    whole = comm.whole(all_rows[comm.part(count)], count)()
    np.testing.assert_array_equal(whole, all_rows)
    assert sum(len(all_rows[part]) for part in comm.allgather(comm.part(count))) == count


def filled(window: Window, indices: range) -> None:
    for index in indices:
        window.slot(index, 0.37 * index)[:, : window.slices] = np.random.default_rng(index).random((21, window.slices))


def test_shared_weights_equal_those_of_one_rank(comm: Comm) -> None:
    window = Window(length=8, step=1, cols=21, slices=1)
    shared, alone = (Weights(GEOMETRY, 8, GEOMETRY.circle(), sharing) for sharing in (comm, None))
    for indices in (range(1), range(1, 7), range(7, 12), range(12, 40)):
        filled(window, indices)
        for weights in (shared, alone):
            weights.update(window)
        np.testing.assert_array_equal(shared.columns, alone.columns)
        np.testing.assert_array_equal(shared.rows, alone.rows)
        assert shared.columns.any()


@pytest.mark.parametrize("kind", registry.names("ministream.recon.algorithms"))
def test_every_algorithm_gives_what_it_gives_on_one_rank(comm: Comm, kind: str) -> None:
    def image_of(algorithm: Algorithm) -> np.ndarray:
        window, image = Window(length=12, step=4, cols=21, slices=2), new_image(GEOMETRY, 2)
        for indices in (range(12), range(12, 16)):
            filled(window, indices)
            algorithm.update(image, window, 2)
        return image

    section = config.ReconSection(kind=kind, circular_mask=True)
    shared, alone = (image_of(open_algorithm(section, GEOMETRY, 2, sharing)) for sharing in (comm, None))
    assert shared.any()
    np.testing.assert_array_equal(shared, alone)
