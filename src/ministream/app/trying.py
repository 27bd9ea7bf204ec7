"""One slice of a recorded scan for each of several values of a parameter: the eye decides what no formula does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream import atomic, config, log, storage
from ministream.app.recon.assignment import assign
from ministream.app.recon.gate import mask_of
from ministream.app.recon.sinograms import UpdateSinograms
from ministream.config import Config
from ministream.errors import ConfigError, InputError
from ministream.model import FrameKind, Scan
from ministream.monitor import contact_sheet
from ministream.plausibility.projections import never_written
from ministream.prep.corrections import Corrector
from ministream.recon import backend, open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.source import open_source

_LOG = log.get(__name__)

MOST_VALUES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The values of one parameter, `table.key` of the configuration, and what each is called on the contact sheet."""

    table: str
    key: str
    values: tuple[float, ...]
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the configuration names it."""
        return f"{self.table}.{self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRow:
    """One detector row of a scan: raw pixels [1, cols] of every frame, with kind, index, angle and position."""

    scan: Scan
    row: int
    frames: list[tuple[FrameKind, int, float, float, NDArray[Any]]]


def trial(name: str, text: str) -> Trial:
    """The values `FIRST:LAST:STEP` of the parameter `TABLE.KEY`, LAST included where a step meets it.

    Raises ConfigError for anything else, and for more than MOST_VALUES values.
    """
    table, dot, key = name.partition(".")
    parts = text.split(":")
    try:
        first, last, step = map(float, parts)
    except ValueError:
        first, last, step = math.nan, math.nan, math.nan
    if not (dot and config.is_key(key) and math.isfinite(first + last + step) and step > 0 and first <= last):
        raise ConfigError(f"{name}={text}: expected TABLE.KEY=FIRST:LAST:STEP, for example recon.axis=290:300:0.5")
    count = int((last - first) / step + 1e-6) + 1
    if count > MOST_VALUES:
        raise ConfigError(
            f"{name}={text}: {count} values, at most {MOST_VALUES} fit a contact sheet: use a larger step"
        )
    digits = max(len(part.partition(".")[2]) for part in parts)
    whole = all(part.strip().lstrip("+-").isdigit() for part in parts)
    values = tuple(round(first + k * step, None if whole else max(digits, 12)) for k in range(count))
    labels = tuple(f"{value:.{digits}f}" if "e" not in text.lower() else f"{value:g}" for value in values)
    return Trial(table=table, key=key, values=values, labels=labels)


def try_values(settings: Config, tables: dict[str, Any], wanted: Trial, row: int | None) -> tuple[Path, Path]:
    """Reconstruct detector row `row`, the middle one by default, with each value; returns the PNG and the HDF5 file.

    `tables` are the configuration before validation. Raises ConfigError for a value that the parameter cannot have,
    InputError for a scan that cannot be read or has no such row, StorageError for files that cannot be written.
    """
    if settings.recon.finds_axis:
        raise ConfigError("recon.axis = auto: a trial has a known axis. Give a column with --set recon.axis=COLUMN")
    configs = [
        config.load(None, {**tables, wanted.table: {**tables.get(wanted.table, {}), wanted.key: value}})
        for value in wanted.values
    ]
    (recorded,) = read_rows(settings, lambda scan: _one_row(scan, row))
    slices = []
    for each, label in zip(configs, wanted.labels, strict=True):
        slices.append(row_slice(each, recorded))
        _LOG.info("%s = %s: done", wanted.name, label)
    largest = max(image.shape[0] for image in slices)
    stack = np.stack([_centred(image, largest) for image in slices])
    folder = settings.output.directory
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.failed(folder, error) from error
    stem = f"try-{wanted.table}-{wanted.key}"
    title = f"{wanted.name}, detector row {recorded.row} of {recorded.scan.rows}"
    written = storage.write_stack(
        folder / f"{stem}.h5", stack, parameter=wanted.name, values=wanted.values, row=recorded.row,
        pixel_size_um=recorded.scan.pixel_size_um, config=settings.as_dict(),
    )  # fmt: skip
    return contact_sheet.draw(stack, wanted.labels, folder / f"{stem}.png", title=title), written


def read_rows(settings: Config, choose: Callable[[Scan], Sequence[int]]) -> list[RecordedRow]:
    """The detector rows that `choose` selects, read in one pass. Raises InputError for a scan without projections."""
    with open_source(settings.source, order="sequential", repeat=1) as source:
        scan = source.describe()
        rows = list(choose(scan))
        frames = [
            (frame.kind, frame.index, frame.angle_rad, frame.position, np.array(frame.pixels[rows]))
            for frame in source.frames()
            if frame.kind is not FrameKind.PROJECTION or not never_written(frame.pixels)
        ]
    if not any(kind is FrameKind.PROJECTION for kind, *_ in frames):
        raise InputError(f"scan {scan.scan_id} holds no projections: choose another file with --set source.file=FILE")
    return [
        RecordedRow(scan=scan, row=row, frames=[(*frame[:-1], frame[-1][k : k + 1]) for frame in frames])
        for k, row in enumerate(rows)
    ]


def _one_row(scan: Scan, row: int | None) -> list[int]:
    row = scan.rows // 2 if row is None else row
    if not 0 <= row < scan.rows:
        raise InputError(f"--row {row}: the scan has rows 0 to {scan.rows - 1}")
    return [row]


def row_slice(settings: Config, recorded: RecordedRow) -> NDArray[np.float32]:
    """The slice [n, n] with these settings, from all projections at once."""
    scan = recorded.scan
    assignment = assign(0, 1, settings, scan, threads=1)
    mask = mask_of(settings.prep.mask, assignment)
    row_mask = None if mask is None else mask[recorded.row : recorded.row + 1]
    corrector = Corrector(
        rows=1, cols=scan.cols, options=settings.prep, mask=row_mask, dtype=scan.dtype,
        pixel_size_um=scan.pixel_size_um, energy_kev=scan.energy_kev,
    )  # fmt: skip
    count = sum(kind is FrameKind.PROJECTION for kind, *_ in recorded.frames)
    window = Window(length=count, step=count, cols=scan.cols, slices=1)
    for kind, index, angle_rad, position, pixels in recorded.frames:
        if kind is FrameKind.PROJECTION:
            corrector.correct(pixels, window.slot(index, angle_rad), position)
        else:
            corrector.add(kind, pixels, position)
    geometry = Geometry(n=assignment.n, cols=scan.cols, axis_col=assignment.axis_col)
    algorithm = open_algorithm(settings.recon, geometry, 1)
    image = backend.default().new_image(geometry, 1)
    sinograms = UpdateSinograms(assignment, rows=1, length=count).of(window, backend.idle)
    algorithm.update(image, sinograms, settings.window.iterations)
    return np.array(backend.default().host(image)[:, :, 0])


def _centred(image: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """The slice in the middle of n × n pixels: half acquisitions are wider, the farther the axis is from the middle."""
    missing = n - image.shape[0]
    return np.pad(image, (missing // 2, missing - missing // 2))


def parameter(axis: str | None, given: Sequence[str]) -> Trial:
    """The trial of `--axis` and `--try`. Raises ConfigError where there is not exactly one."""
    wanted = [(name, text) for name, _, text in (each.partition("=") for each in given)]
    if axis is not None:
        wanted.append(("recon.axis", axis))
    if len(wanted) != 1:
        raise ConfigError(
            f"{len(wanted)} parameters to try, expected one: --axis FIRST:LAST:STEP or --try TABLE.KEY=FIRST:LAST:STEP"
        )
    return trial(*wanted[0])
