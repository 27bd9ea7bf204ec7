"""Levels, chunks and shards of a multiscale image, and the mean that makes one level of the one before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 64  # voxels per side: 1 MiB of float32
SHARD_BYTES = 32 << 20
WIDEST = 2048  # voxels of a shard along x
_ITEM = 4  # float32

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One level: its shape, voxel size in voxels of level 0, and the grids of chunks and shards, each [z, y, x]."""

    shape: Shape
    scale: Shape

    @property
    def chunk(self) -> Shape:
        """The shape of a chunk, at most 1 MiB."""
        z, y, x = (min(CHUNK, size) for size in self.shape)
        return z, y, x

    @property
    def shard(self) -> Shape:
        """The shape of a shard, a multiple of the chunk's: one chunk high, full rows up to WIDEST, 32 MiB at most."""
        z, y, x = self.chunk
        width = math.ceil(min(self.shape[2], WIDEST) / x) * x
        most = max(1, SHARD_BYTES // (z * y * width * _ITEM))
        return z, min(most, math.ceil(self.shape[1] / y)) * y, width

    def shards(self) -> Iterator[Box]:
        """The part of the level that each shard holds."""
        return boxes(self.shape, self.shard)


def levels(shape: Shape) -> list[Level]:
    """Level 0 with this shape, and levels of half the size each, until one chunk holds all; sides of 1 stay."""
    found = [Level(shape=shape, scale=(1, 1, 1))]
    while max(found[-1].shape) > CHUNK:
        last = found[-1]
        halved = [2 if size > 1 else 1 for size in last.shape]
        z, y, x = (math.ceil(size / factor) for size, factor in zip(last.shape, halved, strict=True))
        a, b, c = (scale * factor for scale, factor in zip(last.scale, halved, strict=True))
        found.append(Level(shape=(z, y, x), scale=(a, b, c)))
    return found


def boxes(shape: Shape, part: Shape) -> Iterator[Box]:
    """Tiles of at most `part` that cover `shape`."""
    starts = (range(0, size, step) for size, step in zip(shape, part, strict=True))
    for corner in itertools.product(*starts):
        z, y, x = (slice(at, min(at + step, size)) for at, step, size in zip(corner, part, shape, strict=True))
        yield z, y, x


def within(outer: Box, box: Box) -> Box:
    """The place of `box`, counted from the corner of `outer`, in the whole."""
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(outer, box, strict=True))
    return z, y, x


def shape_of(box: Box) -> Shape:
    """The sides of a box."""
    z, y, x = (side.stop - side.start for side in box)
    return z, y, x


def factors(level: Level, finer: Level) -> Shape:
    """Voxels of the finer level in one of `level`, along each side."""
    z, y, x = (a // b for a, b in zip(level.scale, finer.scale, strict=True))
    return z, y, x


def magnified(box: Box, by: Shape, shape: Shape) -> Box:
    """The voxels of the finer level, of this `shape`, whose means are the voxels of `box`."""
    z, y, x = (
        slice(side.start * factor, min(side.stop * factor, size))
        for side, factor, size in zip(box, by, shape, strict=True)
    )
    return z, y, x


def mean(block: NDArray[np.float32], by: Shape) -> NDArray[np.float32]:
    """Means of pairs of voxels along each side where `by` is 2; the last voxel of an odd side stands for itself."""
    for axis, factor in enumerate(by):
        if factor == 2:
            sides = np.moveaxis(block, axis, 0)
            pairs, second = sides[0::2].copy(), sides[1::2]
            pairs[: len(second)] = (pairs[: len(second)] + second) * np.float32(0.5)
            block = np.moveaxis(pairs, 0, axis)
    return block
