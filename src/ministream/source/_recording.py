"""What all recorded scans share: selection, order, and conversion to frames."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from ministream import config, source
from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Notice, Scan, Slab, notice, ranges
from ministream.source import _order
from ministream.source._angles import AngleRange, AngleUnit
from ministream.source._identity import scan_id
from ministream.source._images import Images, read_in_order

Range: TypeAlias = tuple[int, int]

# Suffixes that beamlines append to sets taken before or after the projections.
BEFORE, AFTER = ("_pre", "_before", "_start"), ("_post", "_after", "_end")


class RecordingOptions(config.Section):
    """The options of every recorded scan. Numbers are as recorded: rows, columns and projections from 0."""

    axis: float | None = Field(default=None, allow_inf_nan=False, description="rotation axis column; none: the file's")
    rows: Range | None = Field(default=None, strict=False, description="detector rows [first, stop]; none: all")
    cols: Range | None = Field(default=None, strict=False, description="detector columns [first, stop]; none: all")
    projections: Range | None = Field(default=None, strict=False, description="[first, stop] as recorded; none: all")
    every: int = Field(default=1, ge=1, description="play every n-th projection")
    exclude: list[int | list[int]] = Field(default=[], description="projections left out: numbers, [first, stop]")
    binning: int = Field(default=1, ge=1, description="mean of n x n pixels, as float32")
    angles: AngleRange | None = Field(default=None, description="{start, step} or {start, stop}; none: the file's")
    angle_unit: AngleUnit | None = Field(default=None, description="degrees or radians; none: as the file says")
    unsigned: bool | None = Field(default=None, description="read signed integers as unsigned; none: error if negative")
    pixel_size_um: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="none: the file's")

    @field_validator("exclude")
    @classmethod
    def _ranges_have_two_ends(cls, value: list[int | list[int]]) -> list[int | list[int]]:
        for one in value:
            if isinstance(one, list) and (len(one) != 2 or not 0 <= one[0] < one[1]):
                raise ValueError(f"{one} is not a range [first, stop]")
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSet:
    """Flats or darks taken together, after `position` projections; images that were never written are not `held`."""

    images: Images
    position: float = 0.0

    @property
    def held(self) -> list[int]:
        """The images that can be played."""
        unwritten = self.images.unwritten()
        return [index for index in range(self.images.count) if index not in unwritten]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A scan as the file format describes it. `angles_rad` [projections] may be NaN where a projection has no angle.

    `file` stands for the scan: another file is another scan. `announced` is the number of angles in the file, which may
    be more than its projections while it is written.
    """

    name: str
    file: Path
    projections: Images
    flats: Sequence[CalibrationSet]
    darks: Sequence[CalibrationSet]
    angles_rad: NDArray[np.float64]
    axis_col: float | None = None
    pixel_size_um: float | None = None
    energy_kev: float | None = None
    sample: str = ""
    notices: Sequence[Notice] = ()
    announced: int = 0


def set_positions(what: str, names: Sequence[str], at: Sequence[int] | None, count: int) -> list[float]:
    """How many of `count` projections were recorded before each set: as configured, else from the names.

    Raises ConfigError where neither does.
    """
    if at is not None:
        if len(at) != len(names) or not all(0 <= k <= count for k in at):
            raise ConfigError(
                f"[source]: {what}_at = {list(at)}, expected {len(names)} numbers from 0 to {count}, one for each of "
                f"{', '.join(names)}"
            )
        return [float(k) for k in at]
    if len(names) == 1:
        return [0.0]
    said = [count if name.endswith(AFTER) else 0 if name.endswith(BEFORE) else None for name in names]
    if len(names) == 2 and None in said:
        said = [0, count]
    if said.count(None) > 1:
        raise ConfigError(
            f"[source]: {what} has {len(names)} sets, and their names do not say when they were taken. Set how many "
            f"projections were recorded before each with --set source.{what}_at=[0, …, {count}]"
        )
    return [float(k or 0) for k in said]


class RecordedSource(source.Recorded):
    """Plays a `Recording`; frames are read on demand. The files are closed by their opener.

    Frames keep the file's dtype in native byte order; where the calibration's differs, the scan takes the dtype that
    holds both, float32 for averaged flats of integer counts.
    """

    def __init__(self, recording: Recording, options: RecordingOptions, *, order: str, repeat: int) -> None:
        images = recording.projections
        self._recording, self._binning = recording, options.binning
        self._rows = _slab("rows", options.rows, images.rows, options.binning)
        self._cols = _slab("cols", options.cols, images.cols, options.binning)
        chosen = _Chosen.of(recording, options)
        self.dropped = len(chosen.unwritten)
        angles_rad = recording.angles_rad[chosen.played]
        play = np.tile(_order.permutation(order, angles_rad), repeat)
        self._played, self._angles_rad = chosen.played[play].tolist(), angles_rad[play].tolist()
        sets = (*recording.flats, *recording.darks)
        self._read_dtype = _common_dtype(images.dtype, [one.images.dtype for one in sets])
        _check_signs(recording, options, self._read_dtype)
        self._scan = Scan(
            scan_id=scan_id(options, order=order, repeat=repeat, file=recording.file),
            rows=self._rows.rows // options.binning,
            cols=self._cols.rows // options.binning,
            projections=len(self._played),
            flats=sum(len(one.held) for one in recording.flats),
            darks=sum(len(one.held) for one in recording.darks),
            dtype=(np.dtype(np.float32) if options.binning > 1 else self._read_dtype).str,
            axis_col=self._axis_col(options, recording),
            pixel_size_um=self._pixel_size_um(options, recording),
            energy_kev=recording.energy_kev,
            sample=recording.sample,
            notices=(*recording.notices, *chosen.notices),
        )

    def describe(self) -> Scan:
        """Geometry and counts, in the configured order and repetition."""
        return self._scan

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections. Raises InputError where the file is damaged, or changes meanwhile."""
        yield from self.calibration()
        yield from self.projections()

    def calibration(self) -> Iterator[Frame]:
        """Darks, then flats."""
        for kind, sets in ((FrameKind.DARK, self._recording.darks), (FrameKind.FLAT, self._recording.flats)):
            index = 0
            for one in sets:
                for pixels in self._read(one.images, one.held):
                    yield _frame(kind, index, 0.0, pixels, one.position)
                    index += 1

    def projections(self) -> Iterator[Frame]:
        """The projections in the configured order."""
        images = self._read(self._recording.projections, self._played)
        for index, (recorded, angle_rad) in enumerate(zip(self._played, self._angles_rad, strict=True)):
            yield _frame(FrameKind.PROJECTION, index, angle_rad, next(images), recorded)

    def close(self) -> None:
        """Nothing is held open here."""

    def _read(self, images: Images, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        return map(self._part, read_in_order(images, indices, self._rows, self._read_dtype))

    def _part(self, image: NDArray[Any]) -> NDArray[Any]:
        """The columns that are played, binned."""
        pixels = image if self._cols.rows == image.shape[1] else np.ascontiguousarray(image[:, self._cols.slice])
        return pixels if self._binning == 1 else _binned(pixels, self._binning)

    def _axis_col(self, options: RecordingOptions, recording: Recording) -> float | None:
        """The axis in the columns that are played: pixel k covers [k - 1/2, k + 1/2]."""
        cols = recording.projections.cols
        axis = recording.axis_col if options.axis is None else options.axis
        if axis is None and (self._cols.first, self._cols.stop) == (0, cols):
            return None
        axis = (cols - 1) / 2 if axis is None else axis
        if options.axis is not None and not 0 <= options.axis <= cols - 1:
            raise ConfigError(f"[source]: axis = {axis:g} is outside the detector's columns 0 to {cols - 1}")
        return (axis - self._cols.first + 0.5) / options.binning - 0.5

    @staticmethod
    def _pixel_size_um(options: RecordingOptions, recording: Recording) -> float | None:
        size = options.pixel_size_um or recording.pixel_size_um
        return None if size is None else size * options.binning


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    """Which projections are played, and which are not because they were never written."""

    played: NDArray[np.intp]
    unwritten: NDArray[np.intp]
    notices: tuple[Notice, ...]

    @classmethod
    def of(cls, recording: Recording, options: RecordingOptions) -> _Chosen:
        count = recording.projections.count
        chosen = np.arange(*_selection("projections", options.projections, count), options.every)
        chosen = chosen[~np.isin(chosen, excluded(options, count))]
        no_angle = chosen[~np.isfinite(recording.angles_rad[chosen])]
        chosen = np.setdiff1d(chosen, no_angle)
        unwritten = np.intersect1d(chosen, np.array(sorted(recording.projections.unwritten()), dtype=np.intp))
        played = np.setdiff1d(chosen, unwritten)
        if not played.size:
            raise InputError(
                f"{recording.projections.name}: none of the requested projections can be played: {len(unwritten)} were "
                f"never written, {len(no_angle)} have no angle. Choose others with projections and exclude."
            )
        notices = []
        if no_angle.size:
            text = f"{_of(no_angle, count)} have no finite angle and are left out"
            notices.append(notice("angles-missing", text, frames=no_angle))
        if unwritten.size:
            text = f"{_of(unwritten, count)} were never written and are left out: the scan was probably aborted"
            notices.append(notice("projections-unwritten", text, frames=unwritten))
        return cls(played=played, unwritten=unwritten, notices=tuple(notices))


def _of(indices: NDArray[np.intp], count: int) -> str:
    return f"{len(indices)} of {count} projections ({ranges(indices)})"


def excluded(options: RecordingOptions, count: int) -> list[int]:
    """The numbers of the projections left out. Raises ConfigError for those that a scan of `count` does not have."""
    numbers: list[int] = []
    for one in options.exclude:
        first, stop = (one, one + 1) if isinstance(one, int) else one
        if not 0 <= first < stop <= count:
            raise ConfigError(f"[source]: exclude has {one}: the file has projections 0 to {count - 1}")
        numbers += range(first, stop)
    return numbers


def _selection(option: str, wanted: Range | None, count: int) -> Range:
    if wanted is None:
        return 0, count
    first, stop = wanted
    if not 0 <= first < stop <= count:
        raise ConfigError(
            f"[source]: {option} = [{first}, {stop}]: the file has {option} 0 to {count - 1}, stop {count}"
        )
    return wanted


def _slab(option: str, wanted: Range | None, count: int, binning: int) -> Slab:
    """The pixels of one axis that are played, a multiple of `binning`."""
    first, stop = _selection(option, wanted, count)
    whole = (stop - first) // binning * binning
    if not whole:
        raise ConfigError(f"[source]: binning = {binning} is more than the {stop - first} {option} that are played")
    return Slab(first, whole)


def _common_dtype(projections: np.dtype[Any], calibration: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype that holds them all; averages in double precision count as single."""
    double, single = np.dtype(np.float64), np.dtype(np.float32)
    return np.result_type(projections, *(single if dtype == double else dtype for dtype in calibration))


def _check_signs(recording: Recording, options: RecordingOptions, dtype: np.dtype[Any]) -> None:
    """Counts are never negative: negative signed integers are probably unsigned data in the wrong type."""
    if options.unsigned is not None or dtype.kind != "i":
        return
    sets: list[Images] = [one.images for one in recording.flats] or [recording.projections]
    for images in sets:
        first = next(index for index in range(images.count) if index not in images.unwritten())
        image = next(read_in_order(images, [first], Slab(0, images.rows), images.dtype))
        negative = np.count_nonzero(image < 0)
        if images.dtype.kind == "i" and negative > image.size // 100:
            unsigned = image.view(f"u{image.dtype.itemsize}")
            raise InputError(
                f"{images.name} holds {image.dtype}, and {negative} of {image.size} pixels of its first image are "
                f"negative, expected counts. Unsigned, they would be at most {unsigned.max()}: give "
                "--set source.unsigned=true if they are, or --set source.unsigned=false to take them as they are."
            )


def _frame(kind: FrameKind, index: int, angle_rad: float, pixels: NDArray[Any], position: float) -> Frame:
    return Frame(
        kind=kind, index=index, angle_rad=angle_rad, pixels=pixels, acquired_s=time.time(), position=float(position)
    )


def _binned(pixels: NDArray[Any], n: int) -> NDArray[np.float32]:
    """The mean of n x n pixels."""
    rows, cols = (size // n for size in pixels.shape)
    blocks = pixels[: rows * n, : cols * n].reshape(rows, n, cols, n)
    mean: NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mean
