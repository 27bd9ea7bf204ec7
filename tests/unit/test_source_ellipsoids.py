"""Exact projections and rasterised slices of ellipsoids, against slow twins and, where installed, ASTRA."""

from __future__ import annotations

import numpy as np
import pytest

from ministream.source._ellipsoids import Ellipsoids

ANGLES_DEG = [0, 17, 45, 90, 118.5, 135, 180, 200.25, 270, 311]


def turned(seed, count):
    """Random rotations [count, 3, 3]."""
    matrices = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, 3, 3)))[0]
    return matrices * np.linalg.det(matrices)[:, None, None]


def random_shapes(seed=1, count=4):
    random = np.random.default_rng(seed)
    return {
        "centre": random.uniform(-9, 9, (count, 3)),
        "semi_axes": random.uniform(3, 16, (count, 3)),
        "attenuation": random.uniform(0.01, 0.1, count),
        "turn": turned(seed, count),
    }


def attenuation_at(shapes, x, y, z):
    """Twin of the sample: a point is inside an ellipsoid when its coordinates along the axes say so."""
    total = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(z)))
    for centre, axes, attenuation, turn in zip(*shapes.values(), strict=True):
        d = np.stack(np.broadcast_arrays(x - centre[0], y - centre[1], z - centre[2]), axis=-1)
        along = sum(((d @ turn[:, k]) / axes[k]) ** 2 for k in range(3))
        total += attenuation * (along <= 1)
    return total


@pytest.mark.parametrize("angle_deg", ANGLES_DEG)
@pytest.mark.parametrize(("rows", "cols", "axis_col"), [(7, 41, 20.0), (6, 40, 23.25), (1, 33, 11.5)])
def test_projection_is_the_integral_along_each_ray(angle_deg, rows, cols, axis_col):
    """Points sampled along rays that follow DESIGN's u = x cos θ + y sin θ + axis."""
    shapes = random_shapes()
    theta = np.deg2rad(angle_deg)
    s = np.arange(-60, 60, 0.01)
    row, col = np.array([(r, c) for r in range(rows) for c in range(0, cols, 4)]).T
    u, z = (col - axis_col)[:, None], ((rows - 1) / 2 - row)[:, None]
    samples = attenuation_at(shapes, u * np.cos(theta) - s * np.sin(theta), u * np.sin(theta) + s * np.cos(theta), z)
    image = Ellipsoids.build(**shapes).project(theta, rows=rows, cols=cols, axis_col=axis_col)
    assert image.shape == (rows, cols)
    assert image.max() > 0.5
    np.testing.assert_allclose(image[row, col], samples.sum(axis=1) * 0.01, atol=0.005)


@pytest.mark.parametrize("n", [31, 32])
@pytest.mark.parametrize("z", [-4.5, 0.0, 3.0])
def test_slice_is_the_mean_over_each_pixel(n, z):
    shapes = random_shapes()
    image = Ellipsoids.build(**shapes).slice_at(z, n)
    fine = (np.arange(16 * n) + 0.5) / 16 - n / 2
    mean = attenuation_at(shapes, fine[None, :], -fine[:, None], z).reshape(n, 16, n, 16).mean(axis=(1, 3))
    assert image.max() > 0.01
    np.testing.assert_allclose(image, mean, atol=0.05 * mean.max())
    np.testing.assert_allclose(image.sum(), mean.sum(), rtol=2e-3)


def test_orientation_of_slice_and_projection():
    """A small ball at x = 10, y = 5, z = 2 is right of, above and over the middle."""
    ball = Ellipsoids.build(centre=[[10.0, 5.0, 2.0]], semi_axes=[[1.5] * 3], attenuation=[1.0], turn=[np.eye(3)])
    image = ball.slice_at(2.0, 41)
    assert np.unravel_index(image.argmax(), image.shape) == (20 - 5, 20 + 10)
    for angle_deg, u in ((0, 10), (90, 5), (180, -10), (270, -5)):
        view = ball.project(np.deg2rad(angle_deg), rows=11, cols=41, axis_col=20.0)
        assert np.unravel_index(view.argmax(), view.shape) == (5 - 2, 20 + u)
        assert view.max() == pytest.approx(3.0)


def test_opposite_views_are_mirrored_about_the_axis():
    sample = Ellipsoids.build(**random_shapes())
    one = sample.project(0.3, rows=5, cols=61, axis_col=30.0)
    np.testing.assert_allclose(one, sample.project(0.3 + np.pi, rows=5, cols=61, axis_col=30.0)[:, ::-1], atol=1e-12)


def test_large_images_are_drawn_in_blocks(monkeypatch):
    sample = Ellipsoids.build(**random_shapes())
    whole = sample.project(0.4, rows=19, cols=50, axis_col=24.0), sample.slice_at(1.0, 50)
    monkeypatch.setattr("ministream.source._ellipsoids.BLOCK_PIXELS", 64)
    np.testing.assert_array_equal(whole[0], sample.project(0.4, rows=19, cols=50, axis_col=24.0))
    np.testing.assert_array_equal(whole[1], sample.slice_at(1.0, 50))


@pytest.mark.parametrize("centre", [[500.0, 0, 0], [0, 0, 500.0], [0, 0, -500.0], [-500.0, -500.0, 0]])
def test_what_is_outside_the_field_is_not_drawn(centre):
    sample = Ellipsoids.build(centre=[centre], semi_axes=[[3.0] * 3], attenuation=[1.0], turn=[np.eye(3)])
    assert not sample.project(0.0, rows=8, cols=16, axis_col=7.5).any()
    assert not sample.slice_at(0.0, 16).any()


def test_scaling_stretches_lengths_and_multiplies_attenuation():
    shapes = random_shapes()
    sample = Ellipsoids.build(**shapes).scaled(xy=2.0, z=3.0, attenuation=0.5)
    grid = np.arange(-30.0, 31.0)
    for z in (-9.0, 4.0):
        expected = 0.5 * attenuation_at(shapes, grid[None, :] / 2, -grid[:, None] / 2, z / 3)
        inside = np.abs(sample.slice_at(z, 61) - expected) < 1e-12
        assert inside.mean() > 0.85  # all but the pixels that a surface crosses


@pytest.mark.parametrize("axis_col", [31.5, 26.5, 34.2])
def test_astra_projects_the_slices_to_the_same_sinogram(axis_col):
    astra = pytest.importorskip("astra")
    n, angles = 64, np.deg2rad(ANGLES_DEG)
    shapes = random_shapes(seed=5)
    sample = Ellipsoids.build(**shapes)
    along_u = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    along_ray = np.stack([np.sin(angles), -np.cos(angles)], axis=1)
    parallel = np.concatenate([along_ray, ((n - 1) / 2 - axis_col) * along_u, along_u], axis=1)
    volume = astra.create_vol_geom(n, n)
    projector = astra.create_projector("linear", astra.create_proj_geom("parallel_vec", n, parallel), volume)
    ident, sinogram = astra.create_sino(sample.slice_at(0.0, n).astype(np.float32), projector)
    astra.data2d.delete(ident)
    astra.projector.delete(projector)
    exact = np.stack([sample.project(a, rows=1, cols=n, axis_col=axis_col)[0] for a in angles])
    assert np.abs(exact - sinogram).mean() < 0.008 * exact.max()
    assert np.corrcoef(exact.ravel(), sinogram.ravel())[0, 1] > 0.999
