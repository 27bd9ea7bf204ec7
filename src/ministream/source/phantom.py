"""A simulated acquisition of an ellipsoid phantom: exact line integrals, detector noise, known ground truth.

The sample may change during the scan; `at` is a time as share of the scan, 0 at its first projection, 1 at its end.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ministream import config, source
from ministream.errors import ProtocolError
from ministream.model import Frame, FrameKind, Scan, Slab
from ministream.source import _order, _samples
from ministream.source._ellipsoids import Ellipsoids
from ministream.source._identity import scan_id
from ministream.source._simulated_detector import DetectorOptions, SimulatedDetector

SampleName = Literal["shepp-logan", "foam"]
Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Column = Annotated[float, Field(ge=0, le=1 << 16)]
Absorption = Annotated[float, Field(gt=0, le=1e3)]
Shrinkage = Annotated[float, Field(ge=0, le=0.9)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Phantom(config.Section):
    """Everything that the ground truth depends on."""

    sample: SampleName
    rows: Pixels
    cols: Pixels
    axis: Column | None
    absorption: Absorption
    shrinkage: Shrinkage
    fills: Literal["detector", "turn"]
    seed: Seed

    @model_validator(mode="after")
    def _axis_on_detector(self) -> Self:
        if self.axis_col > self.cols - 1:
            raise ValueError(f"axis {self.axis:g} is outside the detector's columns 0 to {self.cols - 1}")
        return self

    @property
    def axis_col(self) -> float:
        """The rotation axis, the middle of the detector by default."""
        return (self.cols - 1) / 2 if self.axis is None else self.axis

    def build(self) -> Ellipsoids:
        """The sample at the start, in pixels: as wide as the detector sees in every projection, or in a full turn."""
        to_edges = self.axis_col, self.cols - 1 - self.axis_col
        half_width = (max(to_edges) if self.fills == "turn" else min(to_edges)) + 0.5
        half_height = self.rows / 2
        return _samples.build(
            self.sample, half_width=half_width, half_height=half_height, absorption=self.absorption, seed=self.seed
        )

    def changed(self, sample: Ellipsoids, at: float) -> Ellipsoids:
        """The sample at a time: like a drying one it shrinks towards the axis in its slices, and keeps its mass."""
        width = 1.0 - self.shrinkage * at
        return sample if width == 1.0 else sample.scaled(xy=width, z=1.0, attenuation=1.0 / width**2)


class Recipe(_Phantom):
    """What travels to the receiver as JSON for `truth`."""

    source: Literal["phantom"] = "phantom"


class Options(_Phantom, DetectorOptions):
    """`[source]` with `kind = "phantom"`."""

    sample: SampleName = "shepp-logan"
    rows: Pixels = 64
    cols: Pixels = 256
    projections: int = Field(default=360, ge=1)
    flats: int = Field(default=10, ge=0)
    darks: int = Field(default=10, ge=0)
    range_deg: float = Field(default=180.0, gt=0, allow_inf_nan=False, description="rotation, its end not included")
    axis: Column | None = Field(default=None, description="rotation axis column; none: the middle")
    absorption: Absorption = Field(default=2.0, description="about the largest line integral")
    shrinkage: Shrinkage = Field(default=0.0, description="share of its width that the sample loses during the scan")
    fills: Literal["detector", "turn"] = Field(
        default="detector",
        description="width of the sample: what every projection sees, or all that is seen in a full turn",
    )
    tilt_deg: float = Field(
        default=0.0, ge=-45, le=45, description="the axis leans in the detector's plane, its top to larger columns"
    )
    flats_after: int = Field(default=0, ge=0, description="flats taken after the projections, besides flats")
    seed: Seed = 0
    pixel_size_um: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Source(source.Recorded):
    """Makes frames on demand. A frame depends only on the options, its kind and its index."""

    def __init__(self, options: Options, *, order: str, repeat: int) -> None:
        self._options = options
        self._sample = options.build()
        self._angles_rad = np.deg2rad(_order.angles(order, options.projections, options.range_deg))
        self._detector = SimulatedDetector(options, rows=options.rows, cols=options.cols, seed=options.seed)
        self._scan = Scan(
            scan_id=scan_id(options, order=order, repeat=repeat),
            rows=options.rows,
            cols=options.cols,
            projections=options.projections * repeat,
            flats=options.flats + options.flats_after,
            darks=options.darks,
            dtype=np.dtype(options.dtype).str,
            axis_col=options.axis_col,
            pixel_size_um=options.pixel_size_um,
            sample=f"{options.sample} phantom",
            truth=Recipe(**options.model_dump(include=set(_Phantom.model_fields))).model_dump_json(),
        )

    def describe(self) -> Scan:
        """Geometry and counts, in the configured order and repetition."""
        return self._scan

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections."""
        for kind, count in (
            (FrameKind.DARK, self._scan.darks),
            (FrameKind.FLAT, self._scan.flats),
            (FrameKind.PROJECTION, self._scan.projections),
        ):
            for index in range(count):
                yield self.frame(kind, index)

    def close(self) -> None:
        """Nothing is held open."""

    def frame(self, kind: FrameKind, index: int) -> Frame:
        """Expose one frame; `index` counts the frames of its kind, projections over all passes."""
        position = self._position(kind, index)
        at = position / self._scan.projections
        angle_rad, integrals = 0.0, None
        if kind is FrameKind.PROJECTION:
            angle_rad = float(self._angles_rad[index % len(self._angles_rad)])
            integrals = self.line_integrals(angle_rad, at)
        pixels = self._detector.expose(kind, index, at=at, integrals=integrals)
        return Frame(
            kind=kind, index=index, angle_rad=angle_rad, pixels=pixels, acquired_s=time.time(), position=position
        )

    def _position(self, kind: FrameKind, index: int) -> float:
        """Projections exposed before this frame."""
        if kind is FrameKind.PROJECTION:
            return float(index)
        return float(self._scan.projections if kind is FrameKind.FLAT and index >= self._options.flats else 0)

    def line_integrals(self, angle_rad: float, at: float = 0.0) -> NDArray[np.float64]:
        """The exact line integrals [rows, cols] at one angle and time, without detector or noise."""
        return self._options.changed(self._sample, at).project(
            angle_rad,
            rows=self._scan.rows,
            cols=self._scan.cols,
            axis_col=self._options.axis_col,
            tilt_rad=math.radians(self._options.tilt_deg),
        )


def truth(recipe: str, slab: Slab, *, n: int, at: float) -> NDArray[np.float32]:
    """The phantom's slices of a slab at a time, [slab.rows, n, n] attenuation per pixel around the rotation axis.

    The slice of a detector row is the sample's plane at that row's centre, since its line integrals are exact there;
    within the plane a pixel holds the mean over its area. A tilt of the axis is not in the sample. Raises
    ProtocolError for a malformed recipe, which comes from the producer, and for rows that it does not have.
    """
    known, sample = _built(recipe)
    if not 0 <= slab.first < slab.stop <= known.rows:
        raise ProtocolError(f"the scan's truth recipe has {known.rows} rows, not rows {slab.first} to {slab.stop - 1}")
    sample = known.changed(sample, at)
    image = np.empty((slab.rows, n, n), dtype=np.float32)
    for i, row in enumerate(range(slab.first, slab.stop)):
        image[i] = sample.slice_at((known.rows - 1) / 2 - row, n)
    return image


@functools.lru_cache(maxsize=1)
def _built(recipe: str) -> tuple[Recipe, Ellipsoids]:
    """The recipe, validated, and its sample; kept because the truth is requested slice by slice."""
    try:
        known = Recipe.model_validate_json(recipe)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        problem = " ".join([*map(str, first["loc"]), first["msg"]])
        raise ProtocolError(f"the scan's phantom recipe is malformed: {problem}") from None
    return known, known.build()
