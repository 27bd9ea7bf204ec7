"""Stacks of detector images that are read a block at a time, and how to read them efficiently in any order.

A block is a unit of storage: the images of one HDF5 chunk, or one image. Unpacking a block dominates the cost,
so no block is unpacked more than twice, in any order of projections.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ministream import log
from ministream.errors import InputError
from ministream.model import Slab

_LOG = log.get(__name__)

# Memory limit of one block, or of a scan that must be unpacked as a whole.
MAX_MEMORY_BYTES = 1 << 30
MAX_VISITS = 2

Pixels: TypeAlias = NDArray[Any]


class Images(Protocol):
    """Images [count, rows, cols] that can be read; `name` is for messages."""

    name: str
    count: int
    rows: int
    cols: int
    dtype: np.dtype[Any]

    def block(self, index: int) -> tuple[int, int]:
        """The images [first, stop) that are stored together with image `index`."""
        ...

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        """Fill `target` [n, rows.rows, cols] with the images from `first` on. Raises InputError."""
        ...

    def unwritten(self) -> frozenset[int]:
        """The images that were partly never written."""
        ...


class Level:
    """Calibration known only as a level: one image of one value."""

    count = 1

    def __init__(self, name: str, value: float, *, rows: int, cols: int, dtype: np.dtype[Any]) -> None:
        with np.errstate(invalid="ignore"):
            exact = bool(np.asarray(value).astype(dtype) == value)
        self.name, self.rows, self.cols, self._value = name, rows, cols, value
        self.dtype = dtype if exact else np.dtype(np.float32)

    def block(self, index: int) -> tuple[int, int]:
        return index, index + 1

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        target[:] = self._value

    def unwritten(self) -> frozenset[int]:
        return frozenset()


class Held:
    """Images [count, rows, cols] in memory."""

    def __init__(self, name: str, pixels: Pixels) -> None:
        self.name, self.dtype, self._pixels = name, pixels.dtype, pixels
        self.count, self.rows, self.cols = pixels.shape

    def block(self, index: int) -> tuple[int, int]:
        return index, index + 1

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        target[:] = self._pixels[first : first + len(target), rows.slice]

    def unwritten(self) -> frozenset[int]:
        return frozenset()


class JoinedImages:
    """The images of several stacks, one after the other; `name` is for messages."""

    def __init__(self, name: str, parts: Sequence[Images]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if (part.rows, part.cols) != (first.rows, first.cols):
                raise InputError(
                    f"{part.name} has images of {part.rows} x {part.cols} pixels, {first.name} of "
                    f"{first.rows} x {first.cols}. The parts of a scan must have images of one size: name those that "
                    "belong together with data = ..."
                )
        self.name, self.rows, self.cols = name, first.rows, first.cols
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self._parts = parts
        self._starts = np.cumsum([0, *(part.count for part in parts)]).tolist()
        self.count: int = self._starts[-1]

    def block(self, index: int) -> tuple[int, int]:
        k = self._part_of(index)
        first, stop = self._parts[k].block(index - self._starts[k])
        return first + self._starts[k], stop + self._starts[k]

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        done = 0
        while done < len(target):
            k = self._part_of(first + done)
            count = min(len(target) - done, self._starts[k + 1] - first - done)
            self._parts[k].read(target[done : done + count], first + done - self._starts[k], rows)
            done += count

    def unwritten(self) -> frozenset[int]:
        starts = zip(self._starts, self._parts, strict=False)
        return frozenset(start + index for start, part in starts for index in part.unwritten())

    def _part_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1


class ImageRange:
    """The `count` images of a stack from `first` on."""

    def __init__(self, images: Images, first: int, count: int) -> None:
        self.name, self.rows, self.cols, self.dtype = images.name, images.rows, images.cols, images.dtype
        self.count, self._images, self._first = count, images, first

    def block(self, index: int) -> tuple[int, int]:
        first, stop = self._images.block(index + self._first)
        return max(first - self._first, 0), min(stop - self._first, self.count)

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        self._images.read(target, first + self._first, rows)

    def unwritten(self) -> frozenset[int]:
        there = range(self._first, self._first + self.count)
        return frozenset(index - self._first for index in self._images.unwritten() if index in there)


class Flipped:
    """Images mirrored left to right, top to bottom, or both."""

    def __init__(self, images: Images, *, left_right: bool, up_down: bool) -> None:
        self.name, self.rows, self.cols, self.dtype = images.name, images.rows, images.cols, images.dtype
        self.count, self._images, self._left_right, self._up_down = images.count, images, left_right, up_down
        self.block, self.unwritten = images.block, images.unwritten

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        stored = Slab(self.rows - rows.stop, rows.rows) if self._up_down else rows
        self._images.read(target, first, stored)
        view = target[:, ::-1] if self._up_down else target
        target[:] = view[:, :, ::-1].copy() if self._left_right else view.copy()


class Scaled:
    """Images in float32, the light of each (above `dark` [rows, cols]) multiplied by its own factor [count]."""

    dtype = np.dtype(np.float32)

    def __init__(self, images: Images, factors: Pixels, dark: Pixels) -> None:
        self.name, self.rows, self.cols, self.count = images.name, images.rows, images.cols, images.count
        self._images, self._factors, self._dark = images, factors.astype(np.float32), dark.astype(np.float32)
        self.block, self.unwritten = images.block, images.unwritten

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        self._images.read(target, first, rows)
        dark = self._dark[rows.slice]
        target[:] = dark + (target - dark) * self._factors[first : first + len(target), None, None]


class Gap:
    """Images that are announced but were never written."""

    def __init__(self, like: Images, count: int) -> None:
        self.name, self.rows, self.cols, self.dtype, self.count = like.name, like.rows, like.cols, like.dtype, count

    def block(self, index: int) -> tuple[int, int]:
        return index, index + 1

    def read(self, target: Pixels, first: int, rows: Slab) -> None:
        raise InputError(f"{self.name}: an image that was never written cannot be read")

    def unwritten(self) -> frozenset[int]:
        return frozenset(range(self.count))


def read_in_order(images: Images, indices: Sequence[int], rows: Slab, dtype: np.dtype[Any]) -> Iterator[Pixels]:
    """The rows [rows.rows, cols] of these images in `dtype`, C order, each a separate array. Raises InputError."""
    runs = Counter(block for block, _ in groupby(map(images.block, indices)))
    image_bytes = rows.rows * images.cols * dtype.itemsize
    longest = max((stop - first for first, stop in runs), default=1)
    if longest == 1:
        return _one_by_one(images, indices, rows, dtype)
    if max(runs.values()) <= MAX_VISITS and longest * image_bytes <= MAX_MEMORY_BYTES:
        return _block_by_block(images, indices, rows, dtype)
    return _unpacked(images, indices, rows, dtype, sorted(runs))


def _one_by_one(images: Images, indices: Sequence[int], rows: Slab, dtype: np.dtype[Any]) -> Iterator[Pixels]:
    for index in indices:
        yield _one(images, index, rows, dtype)  # no name keeps the image before while the next one is read


def _one(images: Images, index: int, rows: Slab, dtype: np.dtype[Any]) -> Pixels:
    image = np.empty((1, rows.rows, images.cols), dtype=dtype)
    images.read(image, index, rows)
    first: Pixels = image[0]
    return first


def _block_by_block(images: Images, indices: Sequence[int], rows: Slab, dtype: np.dtype[Any]) -> Iterator[Pixels]:
    for (first, stop), together in groupby(indices, key=images.block):
        block = np.empty((stop - first, rows.rows, images.cols), dtype=dtype)
        images.read(block, first, rows)
        for index in together:
            yield block[index - first].copy()


def _unpacked(
    images: Images, indices: Sequence[int], rows: Slab, dtype: np.dtype[Any], blocks: Sequence[tuple[int, int]]
) -> Iterator[Pixels]:
    """Unpack every block once, into memory or a file that has no name, then pick the images from there."""
    count = sum(stop - first for first, stop in blocks)
    store = _store(images, (count, rows.rows, images.cols), dtype)
    place, begins = 0, dict[int, int]()
    for first, stop in blocks:
        begins[first] = place
        images.read(store[place : place + stop - first], first, rows)
        place += stop - first
    for index in indices:
        first, _ = images.block(index)
        yield np.array(store[begins[first] + index - first])


def _store(images: Images, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Pixels:
    size = int(np.prod(shape)) * dtype.itemsize
    where = "memory" if size <= MAX_MEMORY_BYTES else tempfile.gettempdir()
    _LOG.info(
        "%s: stored in blocks of several images; unpacked once to %s, %.1f MiB, because the images are read in "
        "another order or the blocks are large",
        *(images.name, where, size / 2**20),
    )
    if size <= MAX_MEMORY_BYTES:
        return np.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise InputError(
                f"{images.name}: unpacking it takes {size / 2**20:.0f} MiB in {where}, which cannot be reserved: "
                f"{error.strerror}. Set TMPDIR to a folder with enough space, or play the scan in sequential order."
            ) from error
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def is_blank(images: Images) -> bool:
    """Whether this is one image in which every pixel is 0."""
    if images.count != 1:
        return False
    rows = Slab(0, images.rows)
    return not any(image.any() for image in read_in_order(images, [0], rows, images.dtype))


def picked(images: Images, indices: Sequence[int]) -> Images:
    """These images of a stack (at least one), in ascending order."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    parts = [ImageRange(images, first, stop - first) for first, stop in runs]
    return parts[0] if len(parts) == 1 else JoinedImages(images.name, parts)


def mean(images: Images) -> Pixels:
    """The mean image [rows, cols], in double precision."""
    rows, total = Slab(0, images.rows), np.zeros((images.rows, images.cols))
    for image in read_in_order(images, range(images.count), rows, images.dtype):
        total += image
    return total / images.count
