"""Planes through the volume, against the images of filtered back projection and NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ministream.recon import filtered
from ministream.recon.backend import cpu
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.planes import Plane
from ministream.recon.window import Window

N, COLS, SLICES, LENGTH = 41, 45, 19, 24
GEOMETRY = Geometry(n=N, cols=COLS, axis_col=23.4)


@pytest.fixture(scope="module")
def window() -> Window:
    window = Window(length=LENGTH, step=LENGTH, cols=COLS, slices=SLICES)
    rng = np.random.default_rng(2)
    for index in range(LENGTH):
        window.slot(index, math.pi * index / LENGTH + 0.02 * (index % 3))[:, :SLICES] = rng.random((COLS, SLICES))
    return window


@pytest.fixture(scope="module")
def image(window: Window) -> np.ndarray:
    image = cpu.new_image(GEOMETRY, SLICES)
    filtered.reconstruct(cpu, image, window, GEOMETRY, cpu.new_sinogram(window.data), lambda: None)
    return image


@pytest.fixture(scope="module")
def projections(window: Window) -> np.ndarray:
    found = cpu.new_sinogram(window.data)
    cpu.filter(found, window.data, np.arange(LENGTH), filtered.ramp(COLS, "shepp"))
    return found


@pytest.fixture
def beams(window: Window) -> Beams:
    return Beams.at(window.angles_rad, GEOMETRY.axis_col)


def twin(image: np.ndarray, plane: Plane) -> np.ndarray:
    """Trilinear interpolation in an image [row, col, slice], 0 outside."""
    padded = np.pad(image[:, :, :SLICES], 1)
    out = np.zeros((plane.rows, plane.cols))
    half = (N - 1) / 2
    for j, i in np.ndindex(out.shape):
        x, y = plane.at(j, i)
        place = np.array([half - y, x + half, plane.z0 + j * plane.dz]) + 1
        low = np.floor(place).astype(int)
        for corner in np.ndindex(2, 2, 2):
            at = low + corner
            if (at >= 0).all() and (at < padded.shape).all():
                out[j, i] += np.prod(1 - abs(place - at)) * padded[tuple(at)]
    return out


def tilted(azimuth: float, tilt: float, offset: float = 0.0, step: float = 1.0) -> Plane:
    return Plane.tilted(N, SLICES, azimuth_rad=azimuth, tilt_rad=tilt, offset=offset, step=step)


def whole(window: Window, projections: np.ndarray, beams: Beams, plane: Plane, slabs=(0, SLICES)) -> np.ndarray:
    """The sum of the parts of slabs, with the weight of filtered back projection."""
    total = np.zeros((plane.rows, plane.cols), np.float32)
    for first, stop in itertools.pairwise(slabs):
        own = np.zeros((*projections.shape[:2], 16 * math.ceil((stop - first) / 16)), np.float32)
        own[:, :, : stop - first] = projections[:, :, first:stop]
        near = plane.rows_near(first, stop)
        weights = filtered.shares_rad(window.angles_rad).astype(np.float32)
        part = cpu.slab_plane(own, beams, weights, plane.part(near.start, near.stop), first, stop - first)
        total[near.start : near.stop] += part
    return total


@pytest.mark.parametrize("slabs", [(0, SLICES), (0, 5, 6, SLICES)])
@pytest.mark.parametrize("threads", [1, 2])
def test_orthogonal_planes_are_those_of_filtered_back_projection(window, image, projections, beams, slabs, threads):
    cpu.set_threads(threads)
    expected = {
        Plane.horizontal(N, 7): image[:, :, 7],
        Plane.along_x(N, SLICES, 11): image[11, :, :SLICES].T,
        Plane.along_y(N, SLICES, 30): image[:, 30, :SLICES].T,
        Plane.horizontal(N, 7, 3): image[::3, ::3, 7],
        Plane.along_x(N, SLICES, 11, 2): image[11, ::2, :SLICES:2].T,
        Plane.along_y(N, SLICES, 30, 2): image[::2, 30, :SLICES:2].T,
    }
    for plane, values in expected.items():
        np.testing.assert_allclose(whole(window, projections, beams, plane, slabs), values, atol=2e-6)
    for plane in (Plane.horizontal(N, 7), Plane.horizontal(N, 7, 3)):
        weights = filtered.shares_rad(window.angles_rad).astype(np.float32)
        found = cpu.row_plane(projections[:, :, 7] * weights[:, None], beams, plane)
        np.testing.assert_allclose(found, expected[plane], atol=2e-6)
    row = projections[:, :, 7]
    parts = [cpu.row_plane(row, beams, plane.part(*rows)) for rows in ((0, 0), (0, 3), (3, plane.rows))]
    np.testing.assert_allclose(np.concatenate(parts), cpu.row_plane(row, beams, plane), atol=2e-5)


@pytest.mark.parametrize(("azimuth", "tilt"), [(0.0, 0.0), (0.7, 0.4), (-2.0, -1.1), (0.7, math.pi / 2)])
def test_tilted_planes_of_an_image_are_interpolated(image, azimuth, tilt):
    for offset, step in ((0.0, 1.0), (3.5, 2.0)):
        plane = tilted(azimuth, tilt, offset, step)
        expected = twin(image, plane)
        np.testing.assert_allclose(cpu.image_plane(image, plane, 0, SLICES), expected, atol=1e-5)


@pytest.mark.parametrize(("azimuth", "tilt"), [(0.0, 0.0), (0.7, 0.4), (-2.0, -1.1), (0.7, math.pi / 2)])
def test_tilted_planes_by_filtered_back_projection(window, projections, beams, azimuth, tilt):
    plane = tilted(azimuth, tilt, 1.0)
    found = whole(window, projections, beams, plane)
    np.testing.assert_allclose(whole(window, projections, beams, plane, (0, 4, 12, SLICES)), found, atol=2e-6)
    weights = filtered.shares_rad(window.angles_rad)
    padded, exact = np.pad(projections[:, :, :SLICES], ((0, 0), (1, 1), (1, 1))), np.zeros(found.shape)
    for j, i in np.ndindex(found.shape):
        x, y = plane.at(j, i)
        z = plane.z0 + j * plane.dz + 1
        for p in range(LENGTH):
            u = x * beams.cos[p] + y * beams.sin[p] + beams.axis_col + 1
            for k in (math.floor(u), math.floor(u) + 1):
                for r in (math.floor(z), math.floor(z) + 1):
                    if 0 <= k < padded.shape[1] and 0 <= r < padded.shape[2]:
                        exact[j, i] += weights[p] * (1 - abs(u - k)) * (1 - abs(z - r)) * padded[p, k, r]
    np.testing.assert_allclose(found, exact, atol=2e-5)


def test_tilts_of_0_and_90_degrees_are_the_orthogonal_planes():
    half = (N - 1) / 2
    for found, expected in (
        (tilted(0.0, 0.0, 3.0), Plane.along_x(N, SLICES, half + 3)),
        (tilted(0.0, math.pi / 2), Plane.horizontal(N, (SLICES - 1) / 2)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    down = tilted(-math.pi / 2, 0.0)
    np.testing.assert_allclose(down, Plane.along_y(N, SLICES, half), atol=1e-12)
