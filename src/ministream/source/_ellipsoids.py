"""A sample made of ellipsoids: its exact projections and its rasterised slices.

Lengths are in detector pixels, from the rotation axis and the middle row: x to the right and y upwards in a slice as
it is displayed, z upwards along the axis. At the angle θ the detector sees u = x cos θ + y sin θ (column minus axis)
and z, along rays in the direction s = (-sin θ, cos θ, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Pixels handled at once: the temporaries stay in the cache and memory is bounded, however large an ellipsoid is.
BLOCK_PIXELS = 1 << 16
# Sub-samples per pixel and direction where the surface of an ellipsoid passes.
OVERSAMPLING = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Ellipsoids:
    """n ellipsoids whose attenuations add up where they overlap.

    `centre` [n, 3] is (x, y, z) in pixels; `to_ball` [n, 3, 3] maps a displacement from the centre onto the unit
    ball; `attenuation` [n] is per pixel, negative for a hole.
    """

    centre: Array
    to_ball: Array
    attenuation: Array

    @classmethod
    def build(cls, *, centre: ArrayLike, semi_axes: ArrayLike, attenuation: ArrayLike, turn: ArrayLike) -> Self:
        """From centres [n, 3], semi-axes [n, 3] and the matrices [n, 3, 3] that turn x, y, z into those axes."""
        inverse = np.swapaxes(np.asarray(turn, dtype=np.float64), 1, 2)
        return cls(
            centre=np.asarray(centre, dtype=np.float64),
            to_ball=inverse / np.asarray(semi_axes, dtype=np.float64)[:, :, None],
            attenuation=np.asarray(attenuation, dtype=np.float64),
        )

    def scaled(self, *, xy: float, z: float, attenuation: float) -> Self:
        """The same sample, stretched by `xy` in its slices and by `z` along the axis, attenuations multiplied."""
        stretch = np.array([xy, xy, z])
        return type(self)(
            centre=self.centre * stretch,
            to_ball=self.to_ball / stretch,
            attenuation=self.attenuation * attenuation,
        )

    def project(self, angle_rad: float, *, rows: int, cols: int, axis_col: float, tilt_rad: float = 0.0) -> Array:
        """Line integrals [rows, cols] of a parallel beam, exact at the pixel centres.

        The axis passes through `axis_col` in the middle row, and leans by `tilt_rad` to larger columns at the top.

        With W = `to_ball` and p = (u, z) from an ellipsoid's centre, the ray cuts out the chord 2 √((1 - q) / a),
        where a = |W s|² and q = min over t of |W (p + t s)|² = |W p|² - (W p · W s)² / a. The detector's columns and
        rows count along u cos τ + z sin τ and z cos τ - u sin τ.
        """
        cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
        across = np.array([cosine * np.cos(tilt_rad), sine * np.cos(tilt_rad), np.sin(tilt_rad)])
        up = np.array([-cosine * np.sin(tilt_rad), -sine * np.sin(tilt_rad), np.cos(tilt_rad)])
        wu = self.to_ball @ across
        wz = self.to_ball @ up
        ws = self.to_ball @ np.array([-sine, cosine, 0.0])
        a, us, zs = _dot(ws, ws), _dot(wu, ws), _dot(wz, ws)
        shadows = _Ellipses(
            col=self.centre @ across + axis_col,
            row=(rows - 1) / 2 - self.centre @ up,
            xx=_dot(wu, wu) - us**2 / a,
            xy=_dot(wu, wz) - us * zs / a,
            yy=_dot(wz, wz) - zs**2 / a,
        )
        weight = 2.0 * self.attenuation / np.sqrt(a)
        image = np.zeros((rows, cols))
        for block in shadows.blocks((rows, cols), margin=0.0):
            depth = np.maximum(1.0 - shadows.form(block.index, block.x, block.y), 0.0)
            np.sqrt(depth, out=depth)
            depth *= weight[block.index]
            image[block.pixels] += depth
        return image

    def slice_at(self, z: float, n: int) -> Array:
        """Attenuation per pixel [n, n] in the plane z, with the rotation axis in the middle of the image.

        A pixel holds the mean over its area, from 8 x 8 sub-samples where a surface passes through it.
        """
        sections, attenuation = self._sections(z, n)
        image = np.zeros((n, n))
        for block in sections.blocks((n, n), margin=0.5):
            image[block.pixels] += attenuation[block.index] * sections.coverage(block)
        return image

    def _sections(self, z: float, n: int) -> tuple[_Ellipses, Array]:
        """The ellipses in which the plane z cuts the ellipsoids, and their attenuations.

        |W d|² with d = (x, y, z - z0) is least at (x0, y0); what is left to 1 scales the form in x and y.
        """
        wx, wy = self.to_ball[:, :, 0], self.to_ball[:, :, 1]
        wz = self.to_ball[:, :, 2] * (z - self.centre[:, 2])[:, None]
        xx, xy, yy, xz, yz = _dot(wx, wx), _dot(wx, wy), _dot(wy, wy), _dot(wx, wz), _dot(wy, wz)
        determinant = xx * yy - xy**2
        x0 = (xy * yz - yy * xz) / determinant
        y0 = (xy * xz - xx * yz) / determinant
        left = 1.0 - (_dot(wz, wz) + xz * x0 + yz * y0)
        cut = left > 0.0
        sections = _Ellipses(
            col=((n - 1) / 2 + self.centre[:, 0] + x0)[cut],
            row=((n - 1) / 2 - self.centre[:, 1] - y0)[cut],
            xx=xx[cut] / left[cut],
            xy=xy[cut] / left[cut],
            yy=yy[cut] / left[cut],
        )
        return sections, self.attenuation[cut]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A part of one ellipse's bounding box: where it lies in the image, and x [cols], y [rows] from the centre."""

    index: int
    pixels: tuple[slice, slice]
    x: Array
    y: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ellipses:
    """Ellipses on a pixel grid, xx x² + 2 xy x y + yy y² ≤ 1 around (col, row), y upwards; every array is [n]."""

    col: Array
    row: Array
    xx: Array
    xy: Array
    yy: Array

    def form(self, index: int, x: Array, y: Array) -> Array:
        """The quadratic form of one ellipse at x [..., cols] and y [..., rows]: [..., rows, cols]."""
        q: Array = (self.xx[index] * x**2)[..., None, :] + (self.yy[index] * y**2)[..., :, None]
        if self.xy[index]:
            q += (2.0 * self.xy[index] * y)[..., :, None] * x[..., None, :]
        return q

    def blocks(self, shape: tuple[int, int], margin: float) -> Iterator[_Block]:
        """Every ellipse's bounding box, widened by `margin` pixels and clipped to the image, in blocks of rows."""
        rows, cols = shape
        determinant = self.xx * self.yy - self.xy**2
        across = np.sqrt(self.yy / determinant) + margin
        up = np.sqrt(self.xx / determinant) + margin
        for index, (left, right, top, bottom) in enumerate(
            zip(*_span(self.col, across, cols), *_span(self.row, up, rows), strict=True)
        ):
            if left >= right:
                continue
            x = np.arange(left, right) - self.col[index]
            height = max(1, BLOCK_PIXELS // (right - left))
            for first in range(top, bottom, height):
                stop = min(first + height, bottom)
                y = self.row[index] - np.arange(first, stop)
                yield _Block(index=index, pixels=(slice(first, stop), slice(left, right)), x=x, y=y)

    def coverage(self, block: _Block) -> Array:
        """The part of each pixel's area [rows, cols] that lies inside the ellipse."""
        i = block.index
        radius = np.sqrt(self.form(i, block.x, block.y))
        inside = (radius <= 1.0).astype(np.float64)
        # The radius changes by at most `steepest` per pixel, and half a diagonal leads out of a pixel.
        half_difference = (self.xx[i] - self.yy[i]) / 2
        steepest = np.sqrt((self.xx[i] + self.yy[i]) / 2 + np.hypot(half_difference, self.xy[i]))
        row, col = np.nonzero(np.abs(radius - 1.0) <= steepest * np.sqrt(0.5))
        offset = (np.arange(OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5
        q = self.form(i, block.x[col, None] + offset, block.y[row, None] + offset)
        inside[row, col] = (q <= 1.0).mean(axis=(1, 2))
        return inside


def _dot(one: Array, other: Array) -> Array:
    product: Array = np.einsum("ni,ni->n", one, other)
    return product


def _span(centre: Array, reach: Array, count: int) -> tuple[list[int], list[int]]:
    """First and stop index of the pixels within `reach` of each centre, clipped to [0, count)."""
    first = np.clip(np.ceil(centre - reach), 0, count)
    stop = np.clip(np.floor(centre + reach) + 1, 0, count)
    return first.astype(int).tolist(), stop.astype(int).tolist()
