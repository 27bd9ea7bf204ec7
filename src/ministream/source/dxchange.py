"""A recorded scan in a DXchange file (De Carlo et al., J. Synchrotron Rad. 21, 1224-1230, 2014), played again.

Projections are read from `/exchange/data` [theta, y, x], flats from `data_white`, darks from `data_dark`, angles in
degrees from `theta`. Where these are missing, the detector levels and the rotation's start and step under
`/process/acquisition` stand in, under the names that both older and newer beamline templates use. A scan in numbered
parts (`/entry/data/data_000001`, …, as DECTRIS detectors write it) is read in their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream import source
from ministream.errors import InputError
from ministream.model import Frame, Notice, Scan
from ministream.source import _angles
from ministream.source._axes import Axes, axes_of, chosen_axes
from ministream.source._following import FollowedSource, check_followable
from ministream.source._hdf5 import DataFile, written_in_swmr_mode
from ministream.source._images import Images, JoinedImages, Level, is_blank
from ministream.source._paths import expanded
from ministream.source._recording import (
    AFTER,
    BEFORE,
    CalibrationSet,
    RecordedSource,
    Recording,
    RecordingOptions,
    set_positions,
)
from ministream.source._units import TO_KEV, TO_UM

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
PARTS = "/entry/data"
CALIBRATION = {"flats": "data_white", "darks": "data_dark"}


class Options(RecordingOptions):
    """`[source]` with `kind = "dxchange"`."""

    file: Path = Field(strict=False)
    data: str | None = Field(default=None, description="dataset, or group of parts; none: /exchange/data")
    flats: str | list[str] | None = Field(
        default=None, description='datasets of flats, NAME or FILE:NAME; none: data_white; "none": without flats'
    )
    darks: str | list[str] | None = Field(
        default=None, description='datasets of darks; none: data_dark; "none": without darks'
    )
    flats_at: list[int] | None = Field(default=None, description="projections recorded before each dataset of flats")
    darks_at: list[int] | None = Field(default=None, description="projections recorded before each dataset of darks")
    theta: str | None = Field(default=None, description="dataset of the angles; none: theta beside the projections")
    axes: str | None = Field(
        default=None, description="order of the axes of the projections, such as y:theta:x; none: as the file says"
    )
    follow_links: bool = Field(default=False, description="follow links to files outside the scan's folder")

    follow: bool = Field(default=False, description="the file is still being written: play images as they arrive")
    stall_timeout_s: float = Field(default=30.0, gt=0, description="with follow: longest wait for the next image")


class _Opened:
    """A DXchange file and the files that its options name."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._files: list[DataFile] = []

    def recording(self) -> Recording:
        """The file's current content. Raises InputError."""
        file = self._open(self._options.file)
        return _DXchange(file, self._options, self._open).recording()

    def close(self) -> None:
        """Close the files; repeatable."""
        for file in self._files:
            file.close()

    def _open(self, path: Path) -> DataFile:
        options = self._options
        file = DataFile(expanded(path), follow_links=options.follow_links, growing=options.follow)
        self._files.append(file)
        return file


class Source(source.Recorded):
    """Plays a DXchange file that is complete, or one that is still being written."""

    def __init__(self, options: Options, *, order: str, repeat: int) -> None:
        path = expanded(options.file)
        self._opened = _Opened(options)
        self._played: RecordedSource | FollowedSource
        try:
            if options.follow:
                check_followable(options, order, repeat)
                swmr = partial(written_in_swmr_mode, path)
                self._played = FollowedSource(path, options, partial(_Opened, options), swmr)
            else:
                self._played = RecordedSource(self._opened.recording(), options, order=order, repeat=repeat)
        except BaseException:
            self._opened.close()
            raise
        self.dropped = self._played.dropped

    def describe(self) -> Scan:
        """Geometry and counts, in the configured order and repetition."""
        return self._played.describe()

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections. Raises InputError where the file is damaged, or changes meanwhile."""
        return self._played.frames()

    def stop(self) -> None:
        """End the waiting for images."""
        self._played.stop()

    def close(self) -> None:
        """Close the files."""
        self.stop()
        self._opened.close()


class _DXchange:
    """One file and its options."""

    def __init__(self, file: DataFile, options: Options, opened: Callable[[Path], DataFile]) -> None:
        self._file, self._options, self._opened = file, options, opened
        self._data = options.data or self._default_data()
        self._group = self._data.rpartition("/")[0] or "/"
        self._notices: list[Notice] = []
        self._announced = 0

    def recording(self) -> Recording:
        """Everything that is played. Raises InputError for what is missing or does not fit together."""
        file = self._file
        self._images = self._projections()
        return Recording(
            name=str(file.path),
            file=file.path,
            projections=self._images,
            flats=self._calibration("flats", self._options.flats, self._options.flats_at),
            darks=self._calibration("darks", self._options.darks, self._options.darks_at),
            angles_rad=self._angles_rad(),
            pixel_size_um=_pixel_size_um(file),
            energy_kev=file.quantity(ENERGY, TO_KEV),
            sample=file.text(SAMPLE_NAME),
            notices=self._notices,
            announced=self._announced,
        )

    # where the data are

    def _default_data(self) -> str:
        """`/exchange/data`, else the only `exchangeN/data`, else the numbered parts of `/entry/data`."""
        if self._file.has("/exchange/data"):
            return "/exchange/data"
        numbered = [f"/{name}/data" for name in self._file.groups() if re.fullmatch(r"exchange_?\d+", name)]
        found = [name for name in numbered if self._file.has(name)]
        if len(found) > 1:
            raise InputError(
                f"{self._file.path}: there is no /exchange/data but {len(found)} others ({', '.join(found)}). Choose "
                f"one with --set source.data={found[0]}"
            )
        if found:
            return found[0]
        return PARTS if self._file.has(PARTS) and self._file.parts(PARTS) else "/exchange/data"

    def _projections(self) -> Images:
        file, name = self._file, self._data
        parts = file.parts(name)
        if not parts:
            dataset = file.find(name)
            if dataset is None:
                raise InputError(
                    f"{file.path}: dataset {name} is missing (the file has: {file.contents()}). Name the dataset of "
                    f"the projections with --set source.data=NAME{self._nxtomo_hint()}"
                )
            parts = [dataset]
        self._refuse_nxtomo(int(sum(part.shape[0] for part in parts if part.shape)))
        axes = self._axes(file, name, self._options.axes)
        stacks = [file.images(part, axes=axes, unsigned=bool(self._options.unsigned)) for part in parts]
        return stacks[0] if len(stacks) == 1 else JoinedImages(f"{file.path}: {name}", stacks)

    def _axes(self, file: DataFile, name: str, chosen: str | None = None) -> Axes:
        """The axes of a dataset that hold image, row and column: as the user, else the file says."""
        if chosen is not None:
            return chosen_axes(chosen)
        axes, found = axes_of(str(file.path), name, file.texts(name, "axes"))
        self._notices += found
        return axes

    def _nxtomo_hint(self) -> str:
        return ", or read it as NXtomo with --set source.kind=nxtomo" if self._file.named("image_key") else ""

    def _refuse_nxtomo(self, images: int) -> None:
        for name in self._file.named("image_key"):
            keys = self._file.find(name)
            if keys is not None and keys.size == images:
                raise InputError(
                    f"{self._file.path}: {name} says that flats, darks and projections lie in one dataset, as in "
                    "NXtomo. Read the file with --set source.kind=nxtomo"
                )

    # flats and darks

    def _calibration(self, what: str, names: str | list[str] | None, at: list[int] | None) -> list[CalibrationSet]:
        """Flats or darks: from their datasets, else their level; none if the user disables them.

        A single blank image is what beamlines write in place of calibration they did not take.
        """
        if names == "none":
            return []
        given = [names] if isinstance(names, str) else names or self._default_calibration(what)
        stacks = [(name, images) for name in given if (images := self._calibration_images(what, name)) is not None]
        level = self._level(what) if not stacks or (len(stacks) == 1 and is_blank(stacks[0][1])) else None
        if level is not None:
            return [CalibrationSet(images=level)]
        if not stacks:
            raise InputError(
                f"{self._file.path}: {what} are missing: no images in {', '.join(given)} and no level in "
                f"{LEVELS[what][0]}. Name their dataset with --set source.{what}=NAME, or run without them with "
                f"--set source.{what}=none"
            )
        if missing := sorted(set(given) - {name for name, _ in stacks}) if names is not None else []:
            raise InputError(f"{self._file.path}: {what} are missing: no images in {', '.join(missing)}")
        positions = set_positions(what, [name for name, _ in stacks], at, self._images.count)
        return [CalibrationSet(images=images, position=k) for (_, images), k in zip(stacks, positions, strict=True)]

    def _default_calibration(self, what: str) -> list[str]:
        """The usual dataset, and those taken before and after the projections."""
        usual = f"{self._group.rstrip('/')}/{CALIBRATION[what]}"
        if not self._file.has(usual) and self._file.has(f"/exchange/{CALIBRATION[what]}"):
            usual = f"/exchange/{CALIBRATION[what]}"
        around = [name for end in BEFORE + AFTER if self._file.has(name := usual + end)]
        return [usual, *around] if self._file.has(usual) or not around else around

    def _calibration_images(self, what: str, name: str) -> Images | None:
        """The images of one dataset, 2-D for one image; a number is a level. None where it is absent or empty."""
        file, inside = self._file, name
        path, colon, rest = name.partition(":")
        if colon and rest:
            inside = rest
            file = self._opened(self._file.path.parent / expanded(Path(path)))
        dataset = file.find(inside)
        if dataset is None or dataset.shape is None or 0 in dataset.shape:
            return None
        like = self._images
        if dataset.size == 1 and dataset.ndim < 3:
            value = float(file.values(dataset)[0])
            return Level(f"{file.path}: {inside}", value, rows=like.rows, cols=like.cols, dtype=like.dtype)
        unsigned = bool(self._options.unsigned)
        if dataset.ndim == 2:
            images: Images = file.image(dataset, unsigned=unsigned)
        else:
            images = file.images(dataset, axes=self._axes(file, inside), unsigned=unsigned)
            if self._options.axes is not None and (images.rows, images.cols) != (like.rows, like.cols):
                images = file.images(dataset, axes=chosen_axes(self._options.axes), unsigned=unsigned)
        if (images.rows, images.cols) != (like.rows, like.cols):
            raise InputError(
                f"{file.path}: {inside} has images of {images.rows} x {images.cols} pixels, expected those of "
                f"{like.name}, {like.rows} x {like.cols}. Name other {what} with --set source.{what}=NAME"
            )
        return images

    def _level(self, what: str) -> Images | None:
        value = self._file.number(*LEVELS[what])
        if value is None or not np.isfinite(value) or value < 0 or (what == "flats" and value == 0):
            return None
        like = self._images
        return Level(LEVELS[what][0], value, rows=like.rows, cols=like.cols, dtype=like.dtype)

    # angles

    def _angles_rad(self) -> NDArray[np.float64]:
        """The angle of each recorded projection, at least as far as the user wants to play them."""
        file, options, count = self._file, self._options, self._images.count
        if options.angles is not None:
            stop = options.projections[1] if options.follow and options.projections is not None else count
            values = options.angles.of(max(stop, count))[:count]
            return _angles.to_rad(values, units="", wanted=options.angle_unit or "degrees", where="")
        name = options.theta or self._default_theta()
        dataset = file.find(name)
        if dataset is None:
            return self._from_rotation(name)
        where, units = f"{file.path}: {name}", file.attribute(name, "units")
        values = file.values(dataset)
        if dataset.ndim > 1 and dataset.shape.count(1) < dataset.ndim - 1:
            raise InputError(
                f"{where} has shape {dataset.shape}, expected one angle for each of {count} projections. Name another "
                f"dataset with --set source.theta=NAME, or give --set 'source.angles={{start=0, step=DEGREES}}'"
            )
        self._announced = len(values)
        self._check_count(name, len(values))
        found = _angles.unit_notice(values, units=units, wanted=options.angle_unit, where=name)
        self._notices += [found] if found else []
        return _filled(_angles.to_rad(values, units=units, wanted=options.angle_unit, where=where), count)

    def _default_theta(self) -> str:
        beside = f"{self._group.rstrip('/')}/theta"
        return beside if self._file.has(beside) else "/exchange/theta"

    def _from_rotation(self, name: str) -> NDArray[np.float64]:
        file, count = self._file, self._images.count
        start, step = file.number(*ROTATION_START), file.number(*ROTATION_STEP)
        if start is None or step is None:
            raise InputError(
                f"{file.path}: angles are missing: neither {name} nor {ROTATION_START[0]} and {ROTATION_STEP[0]}. Give "
                "them with --set 'source.angles={start=0, step=DEGREES}' or {start=0, stop=DEGREES_OF_THE_LAST}, or "
                "name their dataset with --set source.theta=NAME"
            )
        stated = file.number(NUM_ANGLES)
        self._check_count(NUM_ANGLES, count if stated is None else stated)
        values = start + step * np.arange(count, dtype=np.float64)
        return _angles.to_rad(values, units="", wanted=self._options.angle_unit or "degrees", where="")

    def _check_count(self, name: str, angles: float) -> None:
        """As many angles as projections; an explicit range of projections accepts the first angles."""
        count, wanted = self._images.count, self._options.projections
        if angles == count or self._options.follow or (wanted is not None and angles >= wanted[1]):
            return
        remedy = "The file is damaged or still being written."
        if angles >= 1:
            remedy = f"If the first ones belong together, give --set source.projections=[0,{int(min(angles, count))}]"
        raise InputError(
            f"{self._file.path}: {name} says {angles:g} angles, {self._data} has {count} projections. {remedy}"
        )


def _filled(angles_rad: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """As many angles as projections: the unrequested rest has none."""
    return np.concatenate([angles_rad[:count], np.full(max(0, count - len(angles_rad)), np.nan)])


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
