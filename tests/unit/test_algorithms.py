"""Every algorithm against a slow twin on the same data, and the contract that all of them keep."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ministream import registry
from ministream.recon.algorithms.os_sirt import subsets
from ministream.recon.backend.cpu import new_image
from ministream.recon.filtered import coverage_rad
from ministream.recon.geometry import Geometry
from tests.unit.dense import Case

KINDS = registry.names("ministream.recon.algorithms")


def inverse(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1, sums, out=np.zeros_like(sums), where=sums > 1e-3)


def forward(A: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("purc,rcs->pus", A, x)


def back(A: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("purc,pus->rcs", A, y)


def test_os_sirt_equals_the_twin() -> None:
    case = Case()
    image, twin = new_image(case.geometry, case.slices), np.zeros_like(case.truth)
    case.open("os_sirt", subsets=5, relaxation=0.8).update(image, case.full_window(), 3)
    R = inverse(case.A.sum(axis=(2, 3)))[:, :, None]
    for _ in range(3):
        for slots in subsets(case.angles_rad, 5):
            A = case.A[slots]
            C = inverse(A.sum(axis=(0, 1)))[:, :, None]
            twin += 0.8 * C * back(A, R[slots] * (case.data[slots] - forward(A, twin)))
    np.testing.assert_allclose(image[:, :, : case.slices], twin, atol=1e-5 * twin.max())


def test_sart_is_os_sirt_with_single_projections() -> None:
    case = Case()
    images = []
    for kind, options in (("sart", {}), ("os_sirt", {"subsets": 40})):
        image = new_image(case.geometry, case.slices)
        case.open(kind, relaxation=0.5, **options).update(image, case.full_window(), 2)
        images.append(image)
    np.testing.assert_array_equal(*images)


def test_subsets_share_the_projections_out() -> None:
    angles = np.random.default_rng(0).uniform(0, 10, 23)
    for count in (0, 1, 4, 23, 50):
        parts = subsets(angles, count)
        assert len(parts) == min(count or 23, 23)
        assert sorted(np.concatenate(parts).tolist()) == list(range(23))


@pytest.mark.parametrize("count", [1, 4])
def test_mlem_equals_the_twin(count: int) -> None:
    case = Case()
    case.data = np.maximum(case.data, 0)
    image = new_image(case.geometry, case.slices)
    case.open("mlem", subsets=count).update(image, case.full_window(), 6)
    mean = case.data.sum(axis=(0, 1)) / case.A.sum()
    twin = np.ones_like(case.truth) * mean
    for _ in range(6):
        for slots in subsets(case.angles_rad, count):
            A = case.A[slots]
            ax = forward(A, twin)
            ratio = np.divide(case.data[slots], ax, out=np.zeros_like(ax), where=ax > 1e-6 * mean)
            twin *= inverse(A.sum(axis=(0, 1)))[:, :, None] * back(A, ratio)
    np.testing.assert_allclose(image[:, :, : case.slices], twin, atol=2e-5 * twin.max())
    assert not image[:, :, case.slices :].any()


def test_cgls_equals_the_twin() -> None:
    case = Case()
    image = new_image(case.geometry, case.slices)
    report = case.open("cgls").update(image, case.full_window(), 5)
    x, r = np.zeros_like(case.truth), case.data.copy()
    p = s = back(case.A, r)
    gamma = (s**2).sum(axis=(0, 1))
    norms = []
    for _ in range(5):
        norms.append((r**2).sum())
        q = forward(case.A, p)
        alpha = gamma / (q**2).sum(axis=(0, 1))
        x, r = x + alpha * p, r - alpha * q
        s = back(case.A, r)
        gamma, old = (s**2).sum(axis=(0, 1)), gamma
        p = s + gamma / old * p
    np.testing.assert_allclose(image[:, :, : case.slices], x, atol=2e-5 * x.max())
    np.testing.assert_allclose(report.residual_norm2, norms, rtol=1e-4)


def divergence(p: NDArray[np.float64]) -> NDArray[np.float64]:
    result = p[0] + p[1]
    result[1:] -= p[0, :-1]
    result[:, 1:] -= p[1, :, :-1]
    return result


def test_fista_tv_equals_the_twin() -> None:
    case = Case()
    image = new_image(case.geometry, case.slices)
    case.open("fista_tv", strength=0.02, tv_passes=6, non_negative=True).update(image, case.full_window(), 5)
    R = inverse(case.A.sum(axis=(2, 3)))[:, :, None]
    columns = case.A.sum(axis=(0, 1))
    step = np.where(columns > 1e-3, 1 / columns.max(), 0)[:, :, None]
    x, ahead, t = np.zeros_like(case.truth), np.zeros_like(case.truth), 1.0
    p = np.zeros((2, *x.shape))
    for _ in range(5):
        noisy = ahead + step * back(case.A, R * (case.data - forward(case.A, ahead)))
        for _ in range(6):
            u = noisy + 0.02 * divergence(p)
            p[0, :-1] += np.diff(u, axis=0) / (8 * 0.02)
            p[1, :, :-1] += np.diff(u, axis=1) / (8 * 0.02)
            p /= np.maximum(1, np.sqrt((p**2).sum(axis=0)))
        old, x = x, np.maximum(noisy + 0.02 * divergence(p), 0)
        t, before = (1 + np.sqrt(1 + 4 * t**2)) / 2, t
        ahead = x + (before - 1) / t * (x - old)
    np.testing.assert_allclose(image[:, :, : case.slices], x, atol=2e-5 * x.max())


def test_tv_beats_sirt_on_few_noisy_projections() -> None:
    case = Case(n=48, cols=48, axis_col=23.5, projections=15, slices=1)
    case.data += np.random.default_rng(0).normal(0, 0.3, case.data.shape)
    errors = {}
    for kind, options in (("sirt", {}), ("fista_tv", {"strength": 0.02})):
        image = new_image(case.geometry, 1)
        case.open(kind, **options).update(image, case.full_window(), 60)
        errors[kind] = np.linalg.norm(image - case.truth)
    assert errors["fista_tv"] < 0.8 * errors["sirt"]


def test_fbp_has_the_right_scale_and_shape() -> None:
    case = Case(n=64, cols=64, axis_col=31.5, projections=100, slices=2)
    image = new_image(case.geometry, 2)
    case.open("fbp").update(image, case.full_window(), 1)
    inside = case.geometry.circle()
    ours, truth = image[inside], case.truth[inside]
    assert np.corrcoef(ours.ravel(), truth.ravel())[0, 1] > 0.97
    assert ours.mean() == pytest.approx(truth.mean(), rel=0.01)


def schedule(name: str) -> NDArray[np.float64]:
    """Angles in radians of 60 projections."""
    k = np.arange(60)
    degrees = {
        "half turn": 3.0 * k,
        "three quarters": 4.5 * k,
        "turn": 6.0 * k,
        "golden angle": k * 180 * (np.sqrt(5) - 1) / 2,
        "two passes": 6.0 * (k % 30),
        "interlaced": 12.0 * (k % 15) + 3.0 * (k // 15),
    }[name]
    return np.deg2rad(degrees)


def test_fbp_has_the_same_level_and_noise_for_every_schedule() -> None:
    """The first slice is the sample, the second noise alone."""
    row, column = np.mgrid[:48, :48] - 23.5
    body = np.hypot(row, column) < 0.3 * 48
    noise = {}
    for name in ("half turn", "three quarters", "turn", "golden angle", "two passes", "interlaced"):
        case = Case(n=48, cols=48, axis_col=23.5, slices=2, angles_rad=schedule(name))
        case.data[:, :, 1] = np.random.default_rng(0).normal(0, 0.2, case.data.shape[:2])
        image = new_image(case.geometry, 2)
        case.open("fbp").update(image, case.full_window(), 1)
        assert image[body, 0].mean() == pytest.approx(case.truth[body, 0].mean(), rel=0.01), name
        noise[name] = image[body, 1].std() / noise.get("half turn", 1.0)
    assert max(list(noise.values())[1:]) < 1.15


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_has_the_same_scale(kind: str) -> None:
    case = Case(n=48, cols=48, axis_col=23.5, projections=60, slices=1)
    image = new_image(case.geometry, 1)
    options = {"strength": 1e-4} if kind == "fista_tv" else {}
    case.open(kind, **options).update(image, case.full_window(), 40)
    row, column = np.mgrid[:48, :48] - 23.5
    body = np.hypot(row, column) < 0.3 * 48
    assert image[body, 0].mean() == pytest.approx(case.truth[body, 0].mean(), rel=0.01)


@pytest.mark.parametrize("name", ["interlaced", "golden angle"])
def test_fbp_step_by_step_in_any_order_equals_fbp_at_once(name: str) -> None:
    case = Case(slices=1, angles_rad=schedule(name))
    window, algorithm = case.window(length=50, step=3), case.open("fbp")
    image = new_image(case.geometry, case.slices)
    for first in range(0, 60, 3):
        case.feed(window, *range(first, first + 3))
        algorithm.update(image, window, 1)
    at_once = new_image(case.geometry, case.slices)
    case.open("fbp").update(at_once, window, 1)
    np.testing.assert_allclose(image, at_once, atol=5e-4 * np.abs(at_once).max())


def test_fbp_step_by_step_equals_fbp_at_once() -> None:
    case, rng = Case(), np.random.default_rng(0)
    window, algorithm = case.window(length=12, step=1), case.open("fbp")
    image = new_image(case.geometry, case.slices)
    for index in rng.integers(0, 40, 60):
        case.feed(window, int(index))
        algorithm.update(image, window, 1)
    at_once = new_image(case.geometry, case.slices)
    case.open("fbp").update(at_once, window, 1)
    np.testing.assert_allclose(image, at_once, atol=1e-5 * np.abs(at_once).max())


def test_sirt_starts_from_fbp_after_half_a_turn() -> None:
    case = Case(n=64, cols=64, axis_col=31.5, projections=60, slices=1)
    window, seeded, plain = case.window(length=60, step=30), case.open(seed_fbp=True), case.open()
    images = [new_image(case.geometry, 1) for _ in range(2)]
    errors = []
    for first in (0, 30):
        case.feed(window, *range(first, first + 30))
        for image, algorithm in zip(images, (seeded, plain), strict=True):
            algorithm.update(image, window, 2)
        errors.append([np.linalg.norm(image - case.truth) for image in images])
    assert errors[0][0] == errors[0][1], "half of the half turn: nothing to start from"
    assert errors[1][0] < 0.5 * errors[1][1]


@pytest.mark.parametrize(
    ("angles_deg", "covered_deg"),
    [(np.arange(0, 180, 2), 180), (np.arange(0, 360, 3), 180), (np.arange(0, 90, 1), 90), ([5], 0)],
)
def test_coverage(angles_deg: NDArray[np.float64], covered_deg: float) -> None:
    assert np.rad2deg(coverage_rad(np.deg2rad(angles_deg))) == pytest.approx(covered_deg, abs=3)


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str) -> None:
    """Any algorithm improves an empty image, reports, leaves the padding alone, and lets MPI have its turn."""
    case, turns = Case(), []
    image = new_image(case.geometry, case.slices)
    algorithm, window = case.open(kind), case.window(length=30, step=10)
    for first in range(0, 40, 10):
        case.feed(window, *range(first, first + 10))
        report = algorithm.update(image, window, 4, progress=lambda: turns.append(1))
        window.updated()
        assert report.iterations >= 1
        assert len(report.residual_norm2) in {0, report.iterations}
        assert report.back_s > 0
    inside = case.geometry.circle()
    found, truth = image[inside][:, : case.slices], case.truth[inside]
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.85
    assert not image[:, :, case.slices :].any()
    assert turns


@pytest.mark.parametrize("kind", KINDS)
def test_the_circle_stays_empty(kind: str) -> None:
    case = Case()
    image = new_image(case.geometry, case.slices)
    image[:] = 0.5
    case.open(kind, circular_mask=True).update(image, case.full_window(), 2)
    assert not image[~case.geometry.circle()].any()
    assert image[case.geometry.circle()].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fbp"])
def test_an_update_ends_when_it_is_told_to(kind: str) -> None:
    case, norms = Case(), []

    def proceed(norm2: float) -> bool:
        norms.append(norm2)
        return len(norms) < 3

    image = new_image(case.geometry, case.slices)
    report = case.open(kind).update(image, case.full_window(), 10, proceed=proceed)
    assert report.iterations == 3
    assert tuple(norms) == report.residual_norm2
    assert norms[-1] < norms[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_axis_may_move(kind: str) -> None:
    case = Case(slices=1)
    wrong = Geometry(n=case.geometry.n, cols=case.geometry.cols, axis_col=case.geometry.axis_col - 2)
    right, case.geometry = case.geometry, wrong
    moved = case.open(kind)
    image, window = new_image(wrong, 1), case.full_window()
    moved.update(image, window, 2)
    moved.move_axis(right.axis_col)
    image[:] = 0
    moved.update(image, window, 2)
    case.geometry = right
    fresh = new_image(right, 1)
    case.open(kind).update(fresh, window, 2)
    np.testing.assert_allclose(image, fresh, atol=2e-3 * fresh.max() if kind == "fista_tv" else 1e-6)
