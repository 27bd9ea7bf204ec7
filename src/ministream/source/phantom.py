"""A simulated acquisition of an ellipsoid phantom: exact line integrals, detector noise, known ground truth."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ministream import config, log, source
from ministream.errors import ProtocolError
from ministream.model import Frame, FrameKind, Scan, Slab
from ministream.source import _order, _samples
from ministream.source._ellipsoids import Ellipsoids
from ministream.source._identity import scan_id

_LOG = log.get(__name__)

SampleName = Literal["shepp-logan", "foam"]
Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Column = Annotated[float, Field(ge=0, le=1 << 16)]
Absorption = Annotated[float, Field(gt=0, le=1e3)]
Counts = Annotated[float, Field(ge=0, le=1e9)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Phantom(config.Section):
    """Everything that the ground truth depends on."""

    sample: SampleName
    rows: Pixels
    cols: Pixels
    axis: Column | None
    absorption: Absorption
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
        """The sample in pixels, as large as the shorter way from the axis to an edge of the detector allows."""
        half_width = min(self.axis_col, self.cols - 1 - self.axis_col) + 0.5
        half_height = self.rows / 2
        return _samples.build(
            self.sample, half_width=half_width, half_height=half_height, absorption=self.absorption, seed=self.seed
        )


class Recipe(_Phantom):
    """What travels to the receiver as JSON for `truth`."""

    source: Literal["phantom"] = "phantom"


class Options(_Phantom):
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
    i0: Counts = Field(default=50_000.0, description="brightest flat pixel above dark, counts")
    dark: Counts = Field(default=100.0, description="brightest dark pixel, counts")
    fixed_pattern: float = Field(default=0.1, ge=0, lt=1, description="unevenness of flats and darks; 0: uniform")
    noise: bool = Field(default=True, description="Poisson noise in every frame")
    drift: float = Field(default=0.0, ge=-9, lt=1, description="share of the beam that is lost by the end of the scan")
    flats_after: int = Field(default=0, ge=0, description="flats taken after the projections, besides flats")
    rings: float = Field(default=0.0, ge=0, lt=1, description="change of the columns' response after the flats")
    zingers: float = Field(
        default=0.0, ge=0, le=1e4, description="mean number of pixels per image that stray photons hit"
    )
    dead: int = Field(default=0, ge=0, description="pixels without signal")
    saturated: int = Field(default=0, ge=0, description="pixels that are always at the top of their range")
    dtype: Literal["uint16", "float32"] = Field(default="uint16", description="uint16 saturates at 65535")
    seed: Seed = 0
    pixel_size_um: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Source(source.Recorded):
    """Makes frames on demand. A frame depends only on the options, its kind and its index."""

    def __init__(self, options: Options, *, order: str, repeat: int) -> None:
        self._options = options
        self._sample = options.build()
        self._angles_rad = np.deg2rad(_order.angles(order, options.projections, options.range_deg))
        self._flat, self._dark = _fixed_pattern(options)
        self._defects = _Defects.of(options)
        if options.dtype == "uint16" and options.i0 + options.dark > np.iinfo(np.uint16).max:
            _LOG.warning("phantom: i0 + dark = %g counts: pixels saturate at 65535", options.i0 + options.dark)
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
        angle_rad, position = 0.0, self._position(kind, index)
        beam = self._flat * (1.0 - self._options.drift * position / self._scan.projections)
        expected = self._dark
        if kind is FrameKind.FLAT:
            expected = self._dark + beam
        elif kind is FrameKind.PROJECTION:
            angle_rad = float(self._angles_rad[index % len(self._angles_rad)])
            seen = np.exp(-self.line_integrals(angle_rad)) * self._defects.response
            expected = self._dark + beam * seen
        pixels = self._detect(expected, kind, index)
        return Frame(
            kind=kind, index=index, angle_rad=angle_rad, pixels=pixels, acquired_s=time.time(), position=position
        )

    def _position(self, kind: FrameKind, index: int) -> float:
        """Projections exposed before this frame."""
        if kind is FrameKind.PROJECTION:
            return float(index)
        return float(self._scan.projections if kind is FrameKind.FLAT and index >= self._options.flats else 0)

    def line_integrals(self, angle_rad: float) -> NDArray[np.float64]:
        """The exact line integrals [rows, cols] at one angle, without detector or noise."""
        return self._sample.project(
            angle_rad, rows=self._scan.rows, cols=self._scan.cols, axis_col=self._options.axis_col
        )

    def _detect(self, expected: NDArray[np.float64], kind: FrameKind, index: int) -> NDArray[np.generic]:
        random = np.random.Generator(np.random.SFC64(np.random.SeedSequence([self._options.seed, kind, index])))
        counts = random.poisson(expected).astype(np.float64) if self._options.noise else expected.copy()
        self._defects.spoil(counts, random, kind)
        if self._options.dtype == "float32":
            return counts.astype(np.float32)
        return np.minimum(np.rint(counts), np.iinfo(np.uint16).max).astype(np.uint16)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Defects:
    """Detector defects: `response` [cols] of the columns since the flats, and pixels by flat index."""

    response: NDArray[np.float64]
    dead: NDArray[np.intp]
    saturated: NDArray[np.intp]
    zingers: float
    top: float

    @classmethod
    def of(cls, options: Options) -> Self:
        """The pixels depend on the seed alone."""
        random = np.random.default_rng([options.seed, 1])
        bad = random.permutation(options.rows * options.cols)
        return cls(
            response=1.0 + options.rings * random.uniform(-1.0, 1.0, options.cols),
            dead=bad[: options.dead],
            saturated=bad[options.dead : options.dead + options.saturated],
            zingers=options.zingers,
            top=float(np.iinfo(np.uint16).max),
        )

    def spoil(self, counts: NDArray[np.float64], random: np.random.Generator, kind: FrameKind) -> None:
        """Apply the defects to the counts [rows, cols] of one image."""
        if self.zingers and kind is not FrameKind.DARK:
            hit = random.integers(counts.size, size=random.poisson(self.zingers))
            counts.flat[hit] = self.top
        counts.flat[self.dead] = 0.0
        counts.flat[self.saturated] = self.top


def truth(recipe: str, slab: Slab) -> NDArray[np.float32]:
    """The phantom's slices of a slab, [slab.rows, n, n] attenuation per pixel, n the scan's columns.

    The slice of a detector row is the sample's plane at that row's centre, since its line integrals are exact there;
    within the plane a pixel holds the mean over its area. Raises ProtocolError for a malformed recipe, which comes
    from the producer, and for rows that it does not have.
    """
    known, sample = _built(recipe)
    if not 0 <= slab.first < slab.stop <= known.rows:
        raise ProtocolError(f"the scan's truth recipe has {known.rows} rows, not rows {slab.first} to {slab.stop - 1}")
    image = np.empty((slab.rows, known.cols, known.cols), dtype=np.float32)
    for i, row in enumerate(range(slab.first, slab.stop)):
        image[i] = sample.slice_at((known.rows - 1) / 2 - row, known.cols)
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


def _fixed_pattern(options: Options) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Flat and dark level of every pixel [rows, cols]: a beam that fades outwards, and pixels of unequal response."""
    shape = (options.rows, options.cols)
    uneven = options.fixed_pattern
    random = np.random.default_rng([options.seed, 0])
    across = np.linspace(-1.0, 1.0, options.cols) ** 2
    up = np.linspace(-1.0, 1.0, options.rows)[:, None] ** 2
    beam = 1.0 - uneven * (across + up) / 2
    flat = options.i0 * beam * (1.0 - uneven * random.random(shape))
    dark = options.dark * (1.0 - uneven * random.random(shape))
    return flat, dark
