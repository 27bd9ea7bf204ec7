"""Planes through the volume: where their pixels are, horizontal, vertical or tilted."""

from __future__ import annotations

import math
from typing import NamedTuple, Self


class Plane(NamedTuple):
    """Pixel (j, i) of rows × cols lies at (x0 + i ax + j dx, y0 + i ay + j dy, z0 + j dz).

    x and y are those of `Geometry`, z counts detector rows; the unit is a pixel. A row of a plane is always
    horizontal: it lies at one z.
    """

    rows: int
    cols: int
    x0: float
    y0: float
    z0: float
    ax: float
    ay: float
    dx: float
    dy: float
    dz: float

    @classmethod
    def horizontal(cls, n: int, z: float, step: float = 1.0) -> Self:
        """Slice z, [row, col] of its n × n pixels, sampled every `step` pixels."""
        half, count, step = (n - 1) / 2, math.ceil(n / step), float(step)
        return cls(count, count, -half, half, float(z), step, 0.0, 0.0, -step, 0.0)

    @classmethod
    def along_x(cls, n: int, slices: int, row: float, step: float = 1.0) -> Self:
        """Row `row` of all slices, [slice, col]."""
        half = (n - 1) / 2
        rows, cols, step = math.ceil(slices / step), math.ceil(n / step), float(step)
        return cls(rows, cols, -half, half - row, 0.0, step, 0.0, 0.0, 0.0, step)

    @classmethod
    def along_y(cls, n: int, slices: int, col: float, step: float = 1.0) -> Self:
        """Column `col` of all slices, [slice, row]."""
        half = (n - 1) / 2
        rows, cols, step = math.ceil(slices / step), math.ceil(n / step), float(step)
        return cls(rows, cols, col - half, half, 0.0, 0.0, -step, 0.0, 0.0, step)

    @classmethod
    def tilted(cls, n: int, slices: int, *, azimuth_rad: float, tilt_rad: float, offset: float, step: float) -> Self:
        """A plane that contains the horizontal direction `azimuth_rad`, counted from the x axis.

        It is vertical for a tilt of 0 and horizontal for ±90 degrees. `offset` is its distance from the middle of the
        volume along its normal, which for azimuth and tilt 0 points to larger image rows.
        """
        cos, sin, up, flat = math.cos(azimuth_rad), math.sin(azimuth_rad), math.cos(tilt_rad), math.sin(tilt_rad)
        width, height = n, tilted_height(n, slices, tilt_rad)
        down = (flat * sin, -flat * cos, up)
        normal = (up * sin, -up * cos, -flat)
        x, y, z = (
            middle + offset * normal[k] - down[k] * (height - 1) / 2
            for k, middle in enumerate((0.0, 0.0, (slices - 1) / 2))
        )
        return cls(
            math.ceil(height / step),
            math.ceil(width / step),
            x - cos * (width - 1) / 2,
            y - sin * (width - 1) / 2,
            z,
            *(step * value for value in (cos, sin, *down)),
        )

    def at(self, j: int, i: int) -> tuple[float, float]:
        """x and y of pixel (j, i)."""
        return self.x0 + i * self.ax + j * self.dx, self.y0 + i * self.ay + j * self.dy

    def part(self, first: int, stop: int) -> Self:
        """The rows [first, stop) of the plane."""
        return self._replace(
            rows=stop - first,
            x0=self.x0 + first * self.dx,
            y0=self.y0 + first * self.dy,
            z0=self.z0 + first * self.dz,
        )

    def rows_near(self, first: int, stop: int) -> range:
        """The rows of the plane to which the detector rows [first, stop) contribute: those nearer than 1 to one."""
        inside = [j for j in range(self.rows) if first - 1 < self.z0 + j * self.dz < stop]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


def tilted_height(n: int, slices: int, tilt_rad: float) -> int:
    """Rows of a tilted plane in pixels: it spans the volume."""
    return math.ceil(abs(math.cos(tilt_rad)) * slices + abs(math.sin(tilt_rad)) * n - 1e-9)
