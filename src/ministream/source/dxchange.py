"""A recorded scan in a DXchange file (De Carlo et al., J. Synchrotron Rad. 21, 1224-1230, 2014), played again.

Projections are read from `/exchange/data` [theta, y, x], flats from `data_white`, darks from `data_dark`, angles in
degrees from `theta`. Where these are missing, the detector levels and the rotation's start and step under
`/process/acquisition` stand in, under the names that both older and newer beamline templates use.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream import config, source
from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Scan, Slab
from ministream.source import _order
from ministream.source._hdf5 import DataFile, Stack

ACQUISITION = "/process/acquisition"
INSTRUMENT = "/measurement/instrument"
LEVELS = {
    "flats": (f"{ACQUISITION}/flat_fields/flat_field_value", f"{ACQUISITION}/flat_fields/value"),
    "darks": (f"{ACQUISITION}/dark_fields/dark_field_value", f"{ACQUISITION}/dark_fields/value"),
}
ROTATION_START = (f"{ACQUISITION}/rotation/rotation_start", f"{ACQUISITION}/rotation/start")
ROTATION_STEP = (f"{ACQUISITION}/rotation/rotation_step", f"{ACQUISITION}/rotation/step")
NUM_ANGLES = f"{ACQUISITION}/rotation/num_angles"
# The pixel size at the sample; else the detector's, to be divided by the magnification.
RESOLUTION = (f"{INSTRUMENT}/detection_system/objective/resolution", f"{INSTRUMENT}/detection_system/resolution")
DETECTOR_PIXEL = (f"{INSTRUMENT}/detector/pixel_size", f"{INSTRUMENT}/detector/pixel_size_x")
MAGNIFICATION = f"{INSTRUMENT}/detection_system/objective/magnification"
ENERGY = f"{INSTRUMENT}/monochromator/energy"
SAMPLE_NAME = "/measurement/sample/name"

TO_UM = dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 1.0)
TO_UM |= {"nm": 1e-3, "mm": 1e3, "m": 1e6}
TO_KEV = {"kev": 1.0, "ev": 1e-3}
TO_RAD = dict.fromkeys(("", "deg", "degs", "degree", "degrees", "°"), float(np.pi / 180))
TO_RAD |= dict.fromkeys(("rad", "rads", "radian", "radians"), 1.0)

Range = tuple[int, int]


class Options(config.Section):
    """`[source]` with `kind = "dxchange"`."""

    file: Path = Field(strict=False)
    axis: float | None = Field(default=None, allow_inf_nan=False, description="rotation axis column; none: unknown")
    rows: Range | None = Field(default=None, strict=False, description="detector rows [first, stop]; none: all")
    projections: Range | None = Field(default=None, strict=False, description="[first, stop] as recorded; none: all")
    every: int = Field(default=1, ge=1, description="play every n-th projection")
    data: str = Field(default="/exchange/data", description="dataset of the projections")
    flats: str = Field(default="/exchange/data_white", description='dataset of the flats; "none": without flats')
    darks: str = Field(default="/exchange/data_dark", description='dataset of the darks; "none": without darks')
    theta: str = Field(default="/exchange/theta", description="dataset of the angles")
    pixel_size_um: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="none: the file's")


class Source(source.Recorded):
    """Reads frames when they are asked for; everything about them but their pixels is checked on opening.

    Frames keep the file's dtype in native byte order; where the calibration's differs, the scan takes the dtype that
    holds both, float32 for averaged flats of integer counts.
    """

    def __init__(self, options: Options, *, order: str, repeat: int) -> None:
        self._file = DataFile(options.file.expanduser())
        try:
            self._prepare(options, order, repeat)
        except BaseException:
            self.close()
            raise

    def _prepare(self, options: Options, order: str, repeat: int) -> None:
        file = self._file
        self._projections = _projections(file, options)
        self._flats = _calibration(file, "flats", options.flats, self._projections)
        self._darks = _calibration(file, "darks", options.darks, self._projections)
        self._rows = _rows(options, self._projections.rows)
        recorded = np.arange(*_selection("projections", options.projections, self._projections.count), options.every)
        angles_rad = _angles_rad(file, options, self._projections.count)[recorded]
        if not np.isfinite(angles_rad).all():
            raise InputError(
                f"{file.path}: the angles of the projections are not all finite: leave those out, or repair"
            )
        play = np.tile(_order.permutation(order, angles_rad), repeat)
        self._played, self._angles_rad = recorded[play].tolist(), angles_rad[play].tolist()
        self._dtype = _common_dtype(self._projections.dtype, self._flats.dtype, self._darks.dtype)
        self._scan = Scan(
            scan_id=uuid.uuid4().hex,
            rows=self._rows.rows,
            cols=self._projections.cols,
            projections=len(self._played),
            flats=self._flats.count,
            darks=self._darks.count,
            dtype=self._dtype.str,
            axis_col=_axis(options, self._projections.cols),
            pixel_size_um=options.pixel_size_um or _pixel_size_um(file),
            energy_kev=file.quantity(ENERGY, TO_KEV),
            sample=file.text(SAMPLE_NAME),
        )

    def describe(self) -> Scan:
        """Geometry and counts, with the order and repetition asked for."""
        return self._scan

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections. Raises InputError where the file is damaged."""
        for kind, images in ((FrameKind.DARK, self._darks), (FrameKind.FLAT, self._flats)):
            for index, pixels in enumerate(images.images(range(images.count), self._rows, self._dtype)):
                yield Frame(kind=kind, index=index, angle_rad=0.0, pixels=pixels, acquired_s=time.time())
        images_played = self._projections.images(self._played, self._rows, self._dtype)
        for index, (pixels, angle_rad) in enumerate(zip(images_played, self._angles_rad, strict=True)):
            yield Frame(
                kind=FrameKind.PROJECTION, index=index, angle_rad=angle_rad, pixels=pixels, acquired_s=time.time()
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Level:
    """Calibration of which only a level is known: `count` images (0 or 1) of one value."""

    count: int
    cols: int
    value: float
    dtype: np.dtype[Any]

    def images(self, indices: Iterable[int], rows: Slab, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        for _ in indices:
            yield np.full((rows.rows, self.cols), self.value, dtype=dtype)


def _projections(file: DataFile, options: Options) -> Stack:
    dataset = file.find(options.data)
    if dataset is None:
        raise InputError(
            f"{file.path}: dataset {options.data} is missing (the file has: {file.contents()}): "
            "name the dataset of the projections with data = ..."
        )
    axes = re.split(r"[:,\s]+", file.attribute(options.data, "axes"))
    if "theta" in axes[1:]:
        raise InputError(f"{file.path}: {options.data} has axes {':'.join(axes)}: transpose it to theta:y:x")
    return file.stack(dataset)


def _calibration(file: DataFile, what: str, name: str, projections: Stack) -> Stack | _Level:
    """Flats or darks: from their dataset, else their level; none where the user says so.

    A single blank image is what beamlines write in place of calibration they did not take.
    """
    cols, dtype = projections.cols, projections.dtype
    if name == "none":
        return _Level(count=0, cols=cols, value=0.0, dtype=dtype)
    dataset = file.find(name)
    stack = file.stack(dataset) if dataset is not None and 0 not in (dataset.shape or ()) else None
    if stack is not None and (stack.rows, stack.cols) != (projections.rows, cols):
        raise InputError(
            f"{file.path}: {name} has images of {stack.rows} x {stack.cols} pixels, "
            f"{projections.name} of {projections.rows} x {cols}: they must be alike"
        )
    level = file.number(*LEVELS[what]) if stack is None or _is_blank(stack) else None
    if level is not None and np.isfinite(level) and (level > 0 or (what == "darks" and level == 0)):
        exact = bool(np.asarray(level).astype(dtype) == level)
        return _Level(count=1, cols=cols, value=level, dtype=dtype if exact else np.dtype(np.float32))
    if stack is None:
        raise InputError(
            f"{file.path}: {what} are missing: no images in {name} and no level in {LEVELS[what][0]}: "
            f'name their dataset with {what} = ..., or go without them with {what} = "none"'
        )
    return stack


def _is_blank(stack: Stack) -> bool:
    every_row = Slab(0, stack.rows)
    return stack.count == 1 and not any(image.any() for image in stack.images([0], every_row, stack.dtype))


def _common_dtype(projections: np.dtype[Any], *calibration: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that holds them all; averages in double precision count as single."""
    double, single = np.dtype(np.float64), np.dtype(np.float32)
    return np.result_type(projections, *(single if dtype == double else dtype for dtype in calibration))


def _angles_rad(file: DataFile, options: Options, projections: int) -> NDArray[np.float64]:
    """The angle of each recorded projection, at least as far as the user wants to play them."""
    dataset = file.find(options.theta)
    if dataset is None:
        start, step = file.number(*ROTATION_START), file.number(*ROTATION_STEP)
        if start is None or step is None:
            raise InputError(
                f"{file.path}: angles are missing: neither {options.theta} nor {ROTATION_START[0]} and "
                f"{ROTATION_STEP[0]}: name the dataset of the angles with theta = ..."
            )
        angles_rad = (start + step * np.arange(projections, dtype=np.float64)) * TO_RAD["degrees"]
        stated = file.number(NUM_ANGLES)
        _check_count(file, options, NUM_ANGLES, projections if stated is None else stated, projections)
    else:
        units = file.attribute(options.theta, "units").lower()
        if units not in TO_RAD:
            raise InputError(f"{file.path}: {options.theta} has units {units!r}: they must be degrees or radians")
        angles_rad = file.values(dataset) * TO_RAD[units]
        _check_count(file, options, options.theta, len(angles_rad), projections)
    return angles_rad


def _check_count(file: DataFile, options: Options, name: str, angles: float, projections: int) -> None:
    """As many angles as projections; a user who picks projections vouches for the first ones."""
    if angles == projections or (options.projections is not None and angles >= options.projections[1]):
        return
    remedy = "the file is damaged or still being written"
    if angles >= 1:
        remedy = f"if the first ones belong together, say projections = [0, {int(min(angles, projections))}]"
    raise InputError(
        f"{file.path}: {name} says {angles:g} angles, {options.data} has {projections} projections: {remedy}"
    )


def _rows(options: Options, rows: int) -> Slab:
    first, stop = _selection("rows", options.rows, rows)
    return Slab(first, stop - first)


def _selection(option: str, wanted: Range | None, count: int) -> Range:
    if wanted is None:
        return 0, count
    first, stop = wanted
    if not 0 <= first < stop <= count:
        raise ConfigError(
            f"[source]: {option} = [{first}, {stop}]: the file has {option} 0 to {count - 1}, stop {count}"
        )
    return wanted


def _axis(options: Options, cols: int) -> float | None:
    if options.axis is not None and not 0 <= options.axis <= cols - 1:
        raise ConfigError(f"[source]: axis = {options.axis:g} is outside the detector's columns 0 to {cols - 1}")
    return options.axis


def _pixel_size_um(file: DataFile) -> float | None:
    """The pixel size at the sample; the detector's own only together with a magnification."""
    for name in RESOLUTION:
        if (size := file.quantity(name, TO_UM)) is not None:
            return size
    magnification = file.number(MAGNIFICATION)
    if magnification is None or not 0 < magnification < np.inf:
        return None
    sizes = (file.quantity(name, TO_UM) for name in DETECTOR_PIXEL)
    return next((size / magnification for size in sizes if size is not None), None)
