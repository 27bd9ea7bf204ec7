"""A recorded scan in an NXtomo file (NeXus application definition), played again.

One dataset holds all images in the order in which they were taken; `image_key` says which are projections (0), flats
(1), darks (2) or invalid (3), and `image_key_control` marks alignment images (-1) among the projections. Flats and
darks keep their place in the scan, so that they can be interpolated in time.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ministream import log
from ministream.errors import ConfigError, InputError
from ministream.model import Notice, notice
from ministream.source import _angles
from ministream.source._hdf5 import DataFile
from ministream.source._images import Flipped, Images, Scaled, mean, picked
from ministream.source._paths import expanded
from ministream.source._recording import CalibrationSet, RecordedSource, Recording, RecordingOptions
from ministream.source._units import TO_KEV, TO_UM

_LOG = log.get(__name__)

DETECTOR = "instrument/detector"
KEYS = ("image_key_control", "image_key")
PROJECTION, FLAT, DARK = 0, 1, 2
# A beam that changes by less than this does not justify the conversion to float32.
STEADY = 1e-3


class Options(RecordingOptions):
    """`[source]` with `kind = "nxtomo"`."""

    file: Path = Field(strict=False)
    entry: str | None = Field(default=None, description="group of the scan; none: the only one")
    monitor: bool = Field(default=True, description="correct for the beam monitor control/data, where there is one")
    follow_links: bool = Field(default=False, description="follow links to files outside the scan's folder")


class Source(RecordedSource):
    """Reads an NXtomo file; everything about the frames but their pixels is checked on opening."""

    def __init__(self, options: Options, *, order: str, repeat: int) -> None:
        self._file = DataFile(expanded(options.file), follow_links=options.follow_links)
        try:
            super().__init__(_NXtomo(self._file, options).recording(), options, order=order, repeat=repeat)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _NXtomo:
    """One scan of a file, and its options."""

    def __init__(self, file: DataFile, options: Options) -> None:
        self._file, self._options = file, options
        self._entry = (options.entry or self._only_entry()).rstrip("/")
        self._notices: list[Notice] = []

    def recording(self) -> Recording:
        """Everything that is played. Raises InputError for what is missing or does not fit together."""
        file, detector = self._file, f"{self._entry}/{DETECTOR}"
        images = self._images()
        keys = self._per_image(tuple(f"{detector}/{key}" for key in KEYS), images.count)
        which = {kind: np.flatnonzero(keys == kind) for kind in (PROJECTION, FLAT, DARK)}
        if not which[PROJECTION].size:
            raise InputError(
                f"{file.path}: {detector}/image_key marks none of {images.count} images as projections (0). Correct it."
            )
        images = self._beam_corrected(images, which)
        return Recording(
            name=str(file.path),
            file=file.path,
            projections=picked(images, which[PROJECTION].tolist()),
            flats=_sets(images, which[FLAT], which[PROJECTION]),
            darks=_sets(images, which[DARK], which[PROJECTION]),
            angles_rad=self._angles_rad(images.count, which[PROJECTION]),
            axis_col=self._axis_col(images),
            pixel_size_um=file.quantity(f"{detector}/x_pixel_size", TO_UM),
            energy_kev=file.quantity(f"{self._entry}/instrument/beam/incident_energy", TO_KEV)
            or file.quantity(f"{self._entry}/beam/incident_energy", TO_KEV),
            sample=file.text(f"{self._entry}/sample/name"),
            notices=self._notices,
        )

    def _only_entry(self) -> str:
        ends = tuple(f"/{DETECTOR}/{key}" for key in KEYS)
        found = {name.removesuffix(end) for end in ends for name in self._file.named(end)}
        entries = sorted(name for name in found if not name.endswith(ends))
        if not entries:
            raise InputError(
                f"{self._file.path}: no group has {DETECTOR}/image_key, expected a NXtomo scan. Name its group with "
                "--set source.entry=NAME, or read the file with --set source.kind=dxchange "
                f"(it has: {self._file.contents()})"
            )
        if len(entries) > 1:
            raise InputError(
                f"{self._file.path}: {len(entries)} scans ({', '.join(entries)}). Choose one with "
                f"--set source.entry={entries[0]}"
            )
        return entries[0]

    def _images(self) -> Images:
        names = (f"{self._entry}/{DETECTOR}/data", f"{self._entry}/data/data")
        dataset = self._file.find(*names)
        if dataset is None:
            raise InputError(
                f"{self._file.path}: images are missing: neither {names[0]} nor {names[1]}. Name the group of the scan "
                "with --set source.entry=NAME"
            )
        images = self._file.images(dataset, unsigned=bool(self._options.unsigned))
        left_right, up_down = self._flips()
        if not left_right and not up_down:
            return images
        _LOG.info("%s: images are mirrored back, left-right: %s, up-down: %s", images.name, left_right, up_down)
        return Flipped(images, left_right=left_right, up_down=up_down)

    def _flips(self) -> tuple[bool, bool]:
        """Whether the detector's images are mirrored left to right and up to down.

        A turn of the detector about the vertical is the former, one about the horizontal the latter.
        """
        detector = f"{self._entry}/{DETECTOR}"
        turned = [self._file.number(f"{detector}/transformations/{axis}") == 180 for axis in ("ry", "rx")]
        said = [self._file.flag(f"{detector}/{name}") for name in ("x_flipped", "y_flipped")]
        return turned[0] or said[0], turned[1] or said[1]

    def _per_image(self, names: tuple[str, ...], count: int) -> NDArray[np.float64]:
        dataset = self._file.find(*names)
        if dataset is None:
            raise InputError(f"{self._file.path}: {' and '.join(names)} are missing, expected {count} values in one")
        values = self._file.values(dataset)
        if len(values) != count:
            raise InputError(
                f"{self._file.path}: {dataset.name} has {len(values)} values, expected one for each of {count} images. "
                "The file is damaged or still being written."
            )
        return values

    def _angles_rad(self, count: int, projections: NDArray[np.intp]) -> NDArray[np.float64]:
        options = self._options
        if options.angles is not None:
            values = options.angles.of(projections.size)
            return _angles.to_rad(values, units="", wanted=options.angle_unit or "degrees", where="")
        names = tuple(f"{self._entry}/{place}/rotation_angle" for place in ("sample", "data"))
        if not any(map(self._file.has, names)):
            raise InputError(
                f"{self._file.path}: angles are missing: neither {' nor '.join(names)}. Give them with "
                "--set 'source.angles={start=0, step=DEGREES}'"
            )
        values = self._per_image(names, count)[projections]
        name = next(name for name in names if self._file.has(name))
        units, where = self._file.attribute(name, "units"), f"{self._file.path}: {name}"
        found = _angles.unit_notice(values, units=units, wanted=options.angle_unit, where=name)
        self._notices += [found] if found else []
        return _angles.to_rad(values, units=units, wanted=options.angle_unit, where=where)

    def _axis_col(self, images: Images) -> float | None:
        """The rotation axis in columns of the images as they are played."""
        detector = f"{self._entry}/{DETECTOR}"
        name = f"{detector}/x_rotation_axis_pixel_position"
        axis = self._file.number(name)
        half = self._file.flag(f"{detector}/half_acquisition")
        half |= self._file.text(f"{detector}/field_of_view").lower() == "half"
        if axis is not None and not 0 <= axis <= images.cols - 1:
            text = f"{name} = {axis:g} is outside the columns 0 to {images.cols - 1}, and is not used"
            self._notices.append(notice("axis-outside", text, axis=axis))
            axis = None
        if half and axis is None and self._options.axis is None:
            raise ConfigError(
                f"{self._file.path}: the scan is a half acquisition, whose rotation axis is near an edge of the "
                f"detector, but {name} does not say where. Set its column with --set source.axis=COLUMN"
            )
        return None if axis is None else images.cols - 1 - axis if self._flips()[0] else axis

    def _beam_corrected(self, images: Images, which: dict[int, NDArray[np.intp]]) -> Images:
        """The images normalised to a constant beam, where a monitor recorded changes."""
        name = f"{self._entry}/control/data"
        if not self._options.monitor or not self._file.has(name):
            return images
        beam = self._per_image((name,), images.count)
        lit = beam[np.concatenate([which[PROJECTION], which[FLAT]])]
        if not (np.isfinite(lit).all() and (lit > 0).all()):
            text = f"{name} is not positive in all images with beam, and is not used"
            self._notices.append(notice("monitor-unusable", text))
            return images
        if np.ptp(lit) <= STEADY * lit.mean():
            return images
        dark = mean(picked(images, which[DARK].tolist())) if which[DARK].size else np.zeros((images.rows, images.cols))
        factors = np.ones(images.count)
        for kind in (PROJECTION, FLAT):
            factors[which[kind]] = lit.mean() / beam[which[kind]]
        _LOG.info(
            "%s: images are corrected for the beam monitor %s, %.4g to %.4g", images.name, name, lit.min(), lit.max()
        )
        return Scaled(images, factors, dark)


def _sets(images: Images, indices: NDArray[np.intp], projections: NDArray[np.intp]) -> list[CalibrationSet]:
    """Images that were taken together, each set with the number of projections recorded before it."""
    before = np.searchsorted(projections, indices)
    together = groupby(zip(before.tolist(), indices.tolist(), strict=True), key=lambda one: one[0])
    return [
        CalibrationSet(images=picked(images, [index for _, index in run]), position=position)
        for position, run in together
    ]
