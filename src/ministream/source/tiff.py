"""A recorded scan in TIFF files, played again: a folder with one file per image, or files with many pages.

The files are in the order of the numbers in their names. TIFF has no angles, so the options give them.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import Field

from ministream.errors import InputError
from ministream.model import Slab
from ministream.source import _angles
from ministream.source._images import Images, JoinedImages
from ministream.source._paths import expanded
from ministream.source._recording import CalibrationSet, RecordedSource, Recording, RecordingOptions, set_positions
from ministream.source._watch import Unchanged, kind_of

SUFFIXES = (".tif", ".tiff")
DEFAULTS = {"flats": ["*flat*", "*white*"], "darks": ["*dark*"]}


class Options(RecordingOptions):
    """`[source]` with `kind = "tiff"`."""

    file: Path = Field(strict=False, description="folder, pattern such as scan/p_*.tif, or file with many pages")
    flats: str | list[str] | None = Field(
        default=None, description='files or folders of flats, as patterns; none: *flat*, *white*; "none": without flats'
    )
    darks: str | list[str] | None = Field(
        default=None, description='files or folders of darks, as patterns; none: *dark*; "none": without darks'
    )
    flats_at: list[int] | None = Field(default=None, description="projections recorded before each pattern of flats")
    darks_at: list[int] | None = Field(default=None, description="projections recorded before each pattern of darks")
    angles_file: Path | None = Field(default=None, strict=False, description="text file with one angle per projection")


class Source(RecordedSource):
    """Reads TIFF files; everything about the frames but their pixels is checked on opening."""

    def __init__(self, options: Options, *, order: str, repeat: int) -> None:
        self._reader = _Reader()
        try:
            super().__init__(_recording(options, self._reader), options, order=order, repeat=repeat)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file that was read last."""
        self._reader.close()


class _Reader:
    """Unpacks pages; the last file stays open, because finding a page takes the longer the more are before it."""

    def __init__(self) -> None:
        self._path = Path()
        self._file: Any = None

    def page(self, path: Path, number: int) -> NDArray[Any]:
        """The pixels [rows, cols] of a page. Raises InputError."""
        with _reading(path):
            if path != self._path or self._file is None:
                self.close()
                self._path, self._file = path, tifffile.TiffFile(path)
            pixels: NDArray[Any] = self._file.pages[number].asarray()
            return pixels

    def close(self) -> None:
        """Close the file; repeatable."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _File:
    """The pages of one TIFF file."""

    def __init__(self, path: Path, unsigned: bool, reader: _Reader) -> None:
        self.name, self._path, self._unsigned, self._reader = str(path), path, unsigned, reader
        self._unchanged = Unchanged(path)
        with _opened(path) as file:
            pages = [page for page in file.pages if page.imagewidth]
            shapes = sorted({page.shape for page in pages})
            first = file.pages.first
            if len(shapes) != 1 or len(shapes[0]) != 2 or first.dtype is None or first.dtype.kind not in "iuf":
                raise InputError(
                    f"{path}: pages of shape {' and '.join(map(str, shapes))} and type {first.dtype}, expected grey "
                    "images of one size. Convert the file, or leave it out with a pattern: --set source.file=PATTERN"
                )
            self.rows, self.cols = shapes[0]
            dtype = first.dtype.newbyteorder("=")
            shape = file.series[0].shape
            self.count = len(pages) if len(shape) == 2 else int(np.prod(shape[:-2]))
            said = int((file.imagej_metadata or {}).get("images", self.count))
            if said > self.count:
                raise InputError(
                    f"{path}: says that it has {said} images, and holds {self.count}: the file was cut short. Copy it "
                    "again."
                )
            size = self.rows * self.cols * dtype.itemsize
            self._offsets = _offsets(pages, self.count, size)
            self._stored = first.dtype.newbyteorder(file.byteorder)
            _check_size(path, pages, self._offsets, size)
        self.dtype: np.dtype[Any] = np.dtype(f"u{dtype.itemsize}") if unsigned and dtype.kind == "i" else dtype

    def block(self, index: int) -> tuple[int, int]:
        return index, index + 1

    def read(self, target: NDArray[Any], first: int, rows: Slab) -> None:
        """Fill `target` [n, rows.rows, cols] with the pages from `first` on. Raises InputError."""
        if self._offsets is not None:
            for k, offset in enumerate(self._offsets[first : first + len(target)]):
                self._take(target[k], self._stored_image(offset), rows)
        else:
            for k in range(len(target)):
                self._take(target[k], self._reader.page(self._path, first + k), rows)
        self._unchanged.check()

    def _take(self, target: NDArray[Any], image: NDArray[Any], rows: Slab) -> None:
        native = np.ascontiguousarray(image[rows.slice], dtype=image.dtype.newbyteorder("="))
        target[:] = native.view(self.dtype)

    def _stored_image(self, offset: int) -> NDArray[Any]:
        """An image without compression, read without parsing the file again."""
        pixels = self.rows * self.cols
        try:
            found = np.fromfile(self._path, self._stored, count=pixels, offset=offset)
        except OSError as error:
            self._unchanged.check()
            raise InputError(f"{self._path}: cannot be read: {error.strerror}. Copy it again.") from error
        if found.size != pixels:
            self._unchanged.check()
            raise InputError(
                f"{self._path}: has {found.size} pixels at byte {offset}, expected {pixels}. Copy it again."
            )
        return found.reshape(self.rows, self.cols)

    def unwritten(self) -> frozenset[int]:
        return frozenset()


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """An open TIFF file."""
    if kind_of(path) != "file":
        raise InputError(f"{path}: no such file")
    with _reading(path), tifffile.TiffFile(path) as file:
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert tifffile's errors to InputError."""
    try:
        yield
    except (OSError, ValueError, TypeError, IndexError, KeyError, RuntimeError, struct.error) as error:
        remedy = "The file is damaged, no TIFF, or compressed in a way that needs the Python package imagecodecs."
        raise InputError(f"{path}: cannot be read as TIFF: {error}. {remedy}") from error


def _offsets(pages: Sequence[Any], count: int, size: int) -> list[int] | None:
    """Where each image of `size` bytes begins, if all of them are stored as they are.

    ImageJ describes the first page of a large stack alone; the others follow it.
    """
    if any(page.keyframe.compression != 1 or page.keyframe.fillorder != 1 for page in pages):
        return None
    if count != len(pages):
        return [pages[0].dataoffsets[0] + k * size for k in range(count)]
    for page in pages:
        ends = [offset + length for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if page.keyframe.is_tiled or list(page.dataoffsets[1:]) != ends[:-1] or sum(page.databytecounts) != size:
            return None
    return [page.dataoffsets[0] for page in pages]


def _check_size(path: Path, pages: Sequence[Any], offsets: Sequence[int] | None, size: int) -> None:
    """The pixels of every page lie within the file: of a shorter one tifffile makes up the rest."""
    strips = [zip(page.dataoffsets, page.databytecounts, strict=True) for page in pages]
    ends = [offset + length for page in strips for offset, length in page if length]
    ends += [offset + size for offset in offsets or []]
    needed, held = max(ends, default=0), path.stat().st_size
    if held < needed or not ends:
        raise InputError(f"{path}: has {held} bytes, expected {needed}: the file was cut short. Copy it again.")


def _recording(options: Options, reader: _Reader) -> Recording:
    path = expanded(options.file)
    folder = path if kind_of(path) == "folder" else path.parent
    sets = {what: _calibration(folder, what, getattr(options, what)) for what in DEFAULTS}
    taken = {file for patterns in sets.values() for _, files in patterns for file in files}
    files = [file for file in _files(path) if file not in taken]
    if not files:
        raise InputError(
            f"{path}: no TIFF files of projections, expected names that end in {' or '.join(SUFFIXES)}. Name a folder, "
            "a file or a pattern with --set source.file=PATTERN"
        )
    if options.angles is not None:
        _check_numbers(path, files)
    projections = _stack(str(path), files, options, reader)
    flats, darks = (_sets(what, sets[what], projections, options, reader) for what in DEFAULTS)
    return Recording(
        name=str(path),
        file=files[-1],
        projections=projections,
        flats=flats,
        darks=darks,
        angles_rad=_angles_rad(options, projections),
        sample=folder.name,
    )


def _files(pattern: Path) -> list[Path]:
    """The TIFF files of a folder, of a pattern, or the one named, in the order of the numbers in their names."""
    if kind_of(pattern) == "file":
        return [pattern]
    if kind_of(pattern) == "folder":
        found = _inside(pattern)
    else:
        named = [path for path in _inside(pattern.parent) if fnmatch.fnmatchcase(path.name, pattern.name)]
        found = [inside for path in named for inside in (_inside(path) if kind_of(path) == "folder" else [path])]
    return sorted((path for path in found if path.suffix.lower() in SUFFIXES), key=_number)


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, nothing where there is none. Raises InputError for a folder that the user may not read."""
    return list(folder.iterdir()) if kind_of(folder) == "folder" else []


def _number(path: Path) -> tuple[list[Any], str]:
    words = re.split(r"(\d+)", path.stem)
    return [int(word) if word.isdigit() else word for word in words], path.suffix


def _check_numbers(path: Path, files: Sequence[Path]) -> None:
    """Raise InputError where files of one image each have numbers that repeat or skip: later angles would shift."""
    names = [re.split(r"(\d+)(?!.*\d)", file.stem) for file in files]
    if len(files) < 3 or any(len(name) != 3 for name in names) or len({(name[0], name[2]) for name in names}) > 1:
        return
    numbers = [int(name[1]) for name in names]
    steps = [later - earlier for earlier, later in itertools.pairwise(numbers)]
    usual = min(steps)
    odd = next((k for k, step in enumerate(steps) if step != usual or step == 0), None)
    if odd is None:
        return
    raise InputError(
        f"{path}: {files[odd + 1].name} follows {files[odd].name}, expected numbers with equal steps, because "
        "source.angles counts the files. Put the missing file back, choose the files with a pattern, --set "
        "source.file=PATTERN, or give one angle for each file with --set source.angles_file=FILE in place of angles"
    )


def _calibration(folder: Path, what: str, given: str | list[str] | None) -> list[tuple[str, list[Path]]]:
    """The files of each pattern. Raises InputError where there are none, unless the user disables them."""
    if given == "none":
        return []
    patterns = [given] if isinstance(given, str) else given or DEFAULTS[what]
    found = [(pattern, _files(folder / pattern)) for pattern in patterns]
    missing = [pattern for pattern, files in found if not files]
    if missing and (given is not None or len(missing) == len(patterns)):
        raise InputError(
            f"{folder}: {what} are missing: no TIFF files match {', '.join(missing)}. Name them with --set "
            f"source.{what}=PATTERN, or run without them with --set source.{what}=none"
        )
    return [(pattern, files) for pattern, files in found if files]


def _stack(name: str, files: Sequence[Path], options: Options, reader: _Reader) -> Images:
    return JoinedImages(name, [_File(file, bool(options.unsigned), reader) for file in files])


def _sets(
    what: str, found: Sequence[tuple[str, list[Path]]], like: Images, options: Options, reader: _Reader
) -> list[CalibrationSet]:
    if not found:
        return []
    stacks = [_stack(pattern, files, options, reader) for pattern, files in found]
    for stack in stacks:
        if (stack.rows, stack.cols) != (like.rows, like.cols):
            raise InputError(
                f"{options.file}: the {what} {stack.name} have {stack.rows} x {stack.cols} pixels, expected "
                f"{like.rows} x {like.cols} as the projections have. Name others with --set source.{what}=PATTERN"
            )
    at: list[int] | None = getattr(options, f"{what}_at")
    positions = set_positions(what, [Path(pattern).stem.rstrip("*") for pattern, _ in found], at, like.count)
    return [CalibrationSet(images=stack, position=k) for stack, k in zip(stacks, positions, strict=True)]


def _angles_rad(options: Options, projections: Images) -> NDArray[np.float64]:
    count, unit = projections.count, options.angle_unit or "degrees"
    if options.angles is not None:
        return _angles.to_rad(options.angles.of(count), units="", wanted=unit, where="")
    if options.angles_file is None:
        raise InputError(
            f"{options.file}: angles are missing, and TIFF has none. Give them with --set 'source.angles={{start=0, "
            "step=DEGREES}' or {start=0, stop=DEGREES_OF_THE_LAST}, or name a text file with one angle per line with "
            "--set source.angles_file=FILE"
        )
    path = expanded(options.angles_file)
    try:
        values = np.loadtxt(path, ndmin=1, comments="#", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: angles cannot be read, expected one number per line: {error}") from error
    if values.shape != (count,):
        raise InputError(
            f"{path}: angles of shape {values.shape}, expected {count}, one for each projection in {options.file}. "
            "Correct the file, or choose the projections with a pattern: --set source.file=PATTERN"
        )
    return _angles.to_rad(values, units="", wanted=unit, where="")
