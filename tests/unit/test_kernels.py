"""Forward and back projection against a slow NumPy twin, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ministream.recon.backend import cpu
from ministream.recon.backend.cpu.layout import aligned_zeros
from ministream.recon.backend.cpu.projections import lane_blocks
from ministream.recon.geometry import Beams, Geometry
from tests.unit.dense import matrix

ANGLES_RAD = np.concatenate(
    [np.arange(8) * np.pi / 4, [0.1, 0.9, 1.7, 2.5, 3.3, 4.4, 5.2, 6.1, -1.0, 7.7, np.pi / 4 + 1e-9, 21.0]]
)


def random(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    array = aligned_zeros(shape)
    array[:] = np.random.default_rng(seed).standard_normal(shape)
    return array


def relative(result: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


SHAPES = [  # n, cols, axis, slices
    (37, 41, 18.3, 1),
    (33, 47, 25.0, 2),
    (16, 16, 7.5, 4),
    (37, 30, 11.25, 8),
    (50, 64, 40.0, 16),
    (1, 3, 1.0, 16),
    (2, 1, 0.0, 1),
    (35, 61, 55.5, 48),
    (31, 31, -3.0, 64),
    (17, 20, 9.5, 112),
    (43, 55, 21.5, 240),
]


@pytest.mark.parametrize(("n", "cols", "axis_col", "slices"), SHAPES)
def test_both_projections_equal_the_twin(n: int, cols: int, axis_col: float, slices: int) -> None:
    A = matrix(n, cols, ANGLES_RAD, axis_col)
    beams = Beams.at(ANGLES_RAD, axis_col)
    image, sinogram = random((n, n, slices)), random((len(ANGLES_RAD), cols, slices), 1)
    expected = sinogram - 0.5 * np.einsum("purc,rcs->pus", A, image.astype(float))
    cpu.forward(image, sinogram, beams, gain=-0.5)
    assert relative(sinogram, expected) < 5e-6
    factor = random((n, n), 2)
    expected = image + factor[:, :, None] * np.einsum("purc,pus->rcs", A, sinogram.astype(float))
    cpu.back(sinogram, image, beams, factor=factor)
    assert relative(image, expected) < 5e-6


@pytest.mark.parametrize(("n", "cols", "axis_col"), [shape[:3] for shape in SHAPES] + [(130, 141, 61.5)])
@pytest.mark.parametrize("circle", [False, True])
def test_the_sums_are_those_of_the_twin(n: int, cols: int, axis_col: float, circle: bool) -> None:
    A = matrix(n, cols, ANGLES_RAD, axis_col)
    support = Geometry(n=n, cols=cols, axis_col=axis_col).circle() if circle else np.ones((n, n), bool)
    beams = Beams.at(ANGLES_RAD, axis_col, np.array([3, 8, 19, 10, 14, 0, 1]))
    rows = cpu.row_sums(beams, support, cols)
    np.testing.assert_allclose(rows, (A[beams.slots] * support).sum(axis=(2, 3)), rtol=2e-6, atol=2e-4)
    columns = cpu.column_sums(beams, n, cols)
    np.testing.assert_allclose(columns, A[beams.slots].sum(axis=(0, 1)), rtol=2e-5, atol=2e-5)


def test_a_support_with_gaps_is_refused() -> None:
    support = np.ones((4, 4), bool)
    support[1, 2] = False
    with pytest.raises(ValueError, match="no gaps"):
        cpu.row_sums(Beams.at(np.zeros(1), 1.5), support, 4)


@pytest.mark.parametrize("slices", [1, 4, 16, 64, 128])
def test_the_pair_is_matched(slices: int) -> None:
    n, cols, axis_col = 97, 111, 50.2
    beams = Beams.at(np.random.default_rng(3).uniform(-7, 7, 33), axis_col)
    x, y = np.abs(random((n, n, slices))), np.abs(random((33, cols, slices), 1))
    ax, aty = aligned_zeros(y.shape), aligned_zeros(x.shape)
    cpu.forward(x, ax, beams)
    cpu.back(y, aty, beams, factor=np.ones((n, n), np.float32))
    left, right = np.vdot(ax.astype(float), y), np.vdot(x.astype(float), aty)
    assert abs(left - right) < 1e-6 * abs(left)


def test_only_the_chosen_projections_take_part() -> None:
    n, cols, slots = 20, 20, np.array([5, 2, 9])
    A = matrix(n, cols, ANGLES_RAD, 9.5)[slots]
    beams = Beams.at(ANGLES_RAD, 9.5, slots)
    image, sinogram = random((n, n, 2)), random((len(ANGLES_RAD), cols, 2), 1)
    others = np.delete(sinogram, slots, axis=0)
    cpu.forward(image, sinogram, beams)
    np.testing.assert_array_equal(np.delete(sinogram, slots, axis=0), others)
    result = aligned_zeros(image.shape)
    cpu.back(sinogram, result, beams, factor=np.ones((n, n), np.float32))
    assert relative(result, np.einsum("purc,pus->rcs", A, sinogram[slots].astype(float))) < 5e-6


def test_limits_and_multiplication() -> None:
    n, beams = 20, Beams.at(ANGLES_RAD, 9.5)
    A = matrix(n, n, ANGLES_RAD, 9.5)
    image, sinogram = random((n, n, 16)), random((len(ANGLES_RAD), n, 16), 1)
    update = 0.1 * np.einsum("purc,pus->rcs", A, sinogram.astype(float))
    added, factored = image.copy(), image.copy()
    factor = np.full((n, n), 0.1, np.float32)
    cpu.back(sinogram, added, beams, factor=factor, lower=-0.25, upper=0.5)
    assert relative(added, np.clip(image + update, -0.25, 0.5)) < 1e-5
    cpu.back(sinogram, factored, beams, factor=factor, multiply=True)
    assert relative(factored, image * update) < 5e-6


@pytest.mark.parametrize("slices", [1, 16, 64, 192])
def test_threads_do_not_change_the_result(slices: int) -> None:
    n, beams = 70, Beams.at(np.linspace(0, np.pi, 40), 33.0)
    x, y = random((n, n, slices)), random((40, n, slices), 1)
    results = []
    for threads in (1, 3):
        cpu.set_threads(threads)
        try:
            ax, aty, calls = aligned_zeros(y.shape), aligned_zeros(x.shape), [0]
            cpu.forward(x, ax, beams, progress=lambda calls=calls: calls.__setitem__(0, calls[0] + 1))
            cpu.back(y, aty, beams, factor=np.ones((n, n), np.float32))
        finally:
            cpu.set_threads(1)
        assert calls[0] >= 1, "MPI gets its turns"
        results.append((ax, aty))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_weigh_returns_the_norm_from_before() -> None:
    sinogram, factor = random((5, 7, 16)), random((5, 7), 1)
    before, beams = sinogram.copy(), Beams.at(np.zeros(5), 3.0, np.array([0, 3]))
    norms = cpu.weigh(sinogram, beams, factor)
    np.testing.assert_allclose(norms, (before[[0, 3]].astype(float) ** 2).sum(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(sinogram[[0, 3]], (before * factor[:, :, None])[[0, 3]], rtol=1e-6)
    np.testing.assert_array_equal(sinogram[[1, 2, 4]], before[[1, 2, 4]])


def test_padding_is_what_the_kernels_can_do() -> None:
    for slices in range(1, 200):
        padded = cpu.padded_slices(slices)
        assert padded >= slices
        blocks = lane_blocks(padded)
        assert sum(lanes * count for lanes, _, count in blocks) == padded
