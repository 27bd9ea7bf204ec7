"""SIRT through its front door: the configuration names it, a window feeds it, an image improves."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ministream.errors import ConfigError
from ministream.recon import open_algorithm
from ministream.recon.backend.cpu import new_image
from ministream.recon.geometry import Geometry
from ministream.recon.weights import Weights
from ministream.recon.window import Window
from tests.unit.dense import Case, section


def sirt_twin(
    case: Case, held: list[int], image: NDArray[np.float64], iterations: int, relaxation: float = 1.0
) -> None:
    A, b = case.A[held], case.data[held]
    rows, columns = A.sum(axis=(2, 3)), A.sum(axis=(0, 1))
    R = np.divide(1, rows, out=np.zeros_like(rows), where=rows > 1e-3)
    C = np.divide(1, columns, out=np.zeros_like(columns), where=columns > 1e-3)
    for _ in range(iterations):
        r = R[:, :, None] * (b - np.einsum("purc,rcs->pus", A, image))
        image += relaxation * C[:, :, None] * np.einsum("purc,pus->rcs", A, r)


@pytest.mark.parametrize("relaxation", [1.0, 0.6])
def test_sirt_equals_the_twin(relaxation: float) -> None:
    case = Case()
    image, twin = new_image(case.geometry, case.slices), np.zeros_like(case.truth)
    report = case.open(relaxation=relaxation).update(image, case.full_window(), 10)
    sirt_twin(case, list(range(40)), twin, 10, relaxation)
    np.testing.assert_allclose(image[:, :, : case.slices], twin, atol=1e-5 * twin.max())
    assert not image[:, :, case.slices :].any()
    assert report.iterations == len(report.residual_norm2) == 10
    assert report.residual_norm2[0] == pytest.approx((case.data**2).sum(), rel=1e-5)


def test_the_weights_are_those_of_what_the_window_holds() -> None:
    """Through filling, sliding, a gap, a late and a repeated projection: each update equals the twin's."""
    case = Case()
    window, algorithm = case.window(length=8, step=3), case.open()
    image, twin = new_image(case.geometry, case.slices), np.zeros_like(case.truth)
    for arrivals in ([0, 1, 2], [3, 4, 5], [6, 9, 7], [20, 20, 21, 22], [8, 30, 31], list(range(10, 18))):
        case.feed(window, *arrivals)
        algorithm.update(image, window, 2)
        window.updated()
        sirt_twin(case, list(window.indices), twin, 2)
        np.testing.assert_allclose(image[:, :, : case.slices], twin, atol=2e-5 * np.abs(twin).max())


def test_incremental_weights_equal_fresh_ones() -> None:
    case, rng = Case(), np.random.default_rng(0)
    window = case.window(length=10, step=1)
    running = Weights(case.geometry, 10, case.geometry.circle())
    for index in rng.integers(0, 40, 100):
        case.feed(window, int(index))
        running.update(window)
    fresh = Weights(case.geometry, 10, case.geometry.circle())
    fresh.update(window)
    np.testing.assert_allclose(running.columns, fresh.columns, rtol=1e-5)
    np.testing.assert_allclose(running.rows[: window.held], fresh.rows[: window.held], rtol=1e-6)


def test_the_error_falls_with_every_iteration() -> None:
    case = Case(n=64, cols=64, axis_col=31.5, projections=90, slices=1)
    image, window, algorithm = new_image(case.geometry, 1), case.full_window(), case.open()
    errors, norms = [], []
    for _ in range(30):
        norms += algorithm.update(image, window, 1).residual_norm2
        errors.append(np.linalg.norm(image[:, :, 0] - case.truth[:, :, 0]))
    assert np.all(np.diff(errors) < 0)
    assert np.all(np.diff(norms) < 0)


def test_box_and_circle() -> None:
    case = Case()
    image = new_image(case.geometry, case.slices)
    image[:] = -1
    algorithm = case.open(non_negative=True, upper=1.2, circular_mask=True)
    algorithm.update(image, case.full_window(), 5)
    outside = ~case.geometry.circle()
    assert not image[outside].any()
    assert image.min() == 0
    assert image.max() == np.float32(1.2)


def test_the_slab_does_not_change_a_slice() -> None:
    """A slice is the same to the last bits whether it is reconstructed alone, in a pair or among twenty."""
    case = Case(slices=20)
    whole = new_image(case.geometry, 20)
    case.open().update(whole, case.full_window(), 5)
    for first, count in ((3, 1), (7, 2), (10, 10)):
        part = Case(slices=20)
        part.data, part.slices = part.data[:, :, first : first + count], count
        image = new_image(part.geometry, count)
        part.open().update(image, part.full_window(), 5)
        np.testing.assert_allclose(image[:, :, :count], whole[:, :, first : first + count], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relaxation": 2.5}, "relaxation"),
        ({"relaxatoin": 1.0}, "did you mean relaxation"),
        ({"non_negative": True, "upper": -1.0}, "upper"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_algorithm(section(**options), Geometry(n=4, cols=4, axis_col=1.5), 1)


def test_an_unknown_algorithm_is_named() -> None:
    with pytest.raises(ConfigError, match="sirt"):
        open_algorithm(section("art"), Geometry(n=4, cols=4, axis_col=1.5), 1)


@pytest.mark.slow
def test_the_tooth_agrees_with_tomopy(shared: Path, tooth: Path) -> None:
    with h5py.File(tooth) as file:
        raw, flat, dark, theta = (file[f"exchange/{name}"][:] for name in ("data", "data_white", "data_dark", "theta"))
    with h5py.File(shared / "reference" / "tooth-sirt-100.h5") as file:
        reference = file["tomopy"][:]
    integrals = -np.log((raw - dark.mean(axis=0)) / (flat.mean(axis=0) - dark.mean(axis=0)))
    geometry = Geometry(n=640, cols=640, axis_col=295.5)
    window = Window(length=len(raw), step=len(raw), cols=640, slices=2)
    for index, projection in enumerate(integrals):
        window.slot(index, np.deg2rad(theta[index]))[:, :2] = projection.T
    image = new_image(geometry, 2)
    open_algorithm(section(), geometry, 2).update(image, window, 100)
    axis = np.arange(640) - 319.5
    inside = axis[:, None] ** 2 + axis**2 <= 320**2
    for k in range(2):
        ours, theirs = image[:, :, k][inside], reference[k][inside]
        assert np.corrcoef(ours, theirs)[0, 1] >= 0.999
        assert abs(ours.mean() / theirs.mean() - 1) < 0.005
