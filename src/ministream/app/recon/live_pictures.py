"""Pictures for the live view: every rank cuts its part from its slab, rank 0 joins the parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.assignment import Assignment, is_half_acquisition
from ministream.app.recon.parts import Parts
from ministream.recon import backend
from ministream.recon.planes import Plane, tilted_height
from ministream.wire.live import MAX_SIDE, Picture, Shape

Pixels = NDArray[np.float32]

PLANES = ("z", "y", "x", "tilted")
# Kinds that lie in one detector row; the others have a part on every rank.
_ONE_ROW = ("z", "sinogram")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlabParts:
    """One rank's parts of the wanted pictures after `update` updates, and its seconds per stage so far.

    `serial` is different for all parts of this rank.
    """

    serial: int
    update: int
    pixels: Mapping[Picture, Pixels]
    angle_rad: float | None
    stages: Mapping[str, float]


class SlabPictures:
    """Cuts the parts of pictures from one rank's image and window."""

    def __init__(self, assignment: Assignment, parts: Parts) -> None:
        self._assignment, self._slab = assignment, assignment.slab
        self._image, self._window = parts.image, parts.window

    @property
    def angle_rad(self) -> float | None:
        """The angle of the newest projection in the window."""
        return float(self._window.angles_rad[self._newest]) if self._window.held else None

    def part(self, picture: Picture) -> Pixels | None:
        """This rank's rows of a picture, None if it has none; `y`, `x` and `projection` keep every row."""
        if picture.kind in _ONE_ROW and not self._slab.first <= picture.index < self._slab.stop:
            return None
        found = self._cut(picture, step_of(picture, self._assignment))
        return None if found is None else np.ascontiguousarray(found)

    @property
    def _newest(self) -> int:
        return int(self._window.stamps.argmax())

    def _cut(self, picture: Picture, step: int) -> Pixels | None:
        every, rows = slice(None, None, step), self._slab.rows
        own = picture.index - self._slab.first
        match picture.kind:
            case "tilted":
                return self._tilted(picture)
            case "z":
                return self._image.host()[every, every, own]
            case "y":
                return self._image.host()[picture.index, every, :rows].T
            case "x":
                return self._image.host()[every, picture.index, :rows].T
            case _:
                return self._measured(picture, every, own) if self._window.held else None

    def _tilted(self, picture: Picture) -> Pixels:
        plane, slab = plane_of(picture, self._assignment), self._slab
        near = plane.rows_near(slab.first, slab.stop)
        mine = plane.part(near.start, near.stop)
        return backend.default().image_plane(self._image.handle, mine, slab.first, slab.rows)

    def _measured(self, picture: Picture, every: slice, own: int) -> Pixels:
        """The newest projection, or a sinogram."""
        if picture.kind == "projection":
            newest: Pixels = self._window.data[self._newest, every, : self._slab.rows].T
            return newest
        order = np.argsort(self._window.angles_rad)[every]
        found: Pixels = self._window.data[order, :, own][:, every]
        return found


def plane_of(picture: Picture, assignment: Assignment) -> Plane:
    """Where the pixels of a plane are."""
    n, slices, step = assignment.n, assignment.scan.rows, step_of(picture, assignment)
    match picture.kind:
        case "z":
            return Plane.horizontal(n, picture.index, step)
        case "y":
            return Plane.along_x(n, slices, picture.index, step)
        case "x":
            return Plane.along_y(n, slices, picture.index, step)
    azimuth_rad, tilt_rad = math.radians(picture.azimuth_deg), math.radians(picture.tilt_deg)
    return Plane.tilted(n, slices, azimuth_rad=azimuth_rad, tilt_rad=tilt_rad, offset=picture.index, step=step)


def step_of(picture: Picture, assignment: Assignment) -> int:
    """Every how many pixels a picture is sampled, so that it fits MAX_SIDE."""
    scan, n = assignment.scan, assignment.n
    longest = {
        "z": n,
        "y": max(n, scan.rows),
        "x": max(n, scan.rows),
        "tilted": max(n, tilted_height(n, scan.rows, math.radians(picture.tilt_deg))),
        "projection": max(scan.cols, scan.rows),
        "sinogram": max(scan.cols, assignment.config.window.length),
    }
    return math.ceil(longest[picture.kind] / MAX_SIDE)


def exists(picture: Picture, assignment: Assignment) -> bool:
    """Whether a scan of this size has the picture."""
    if picture.by == "fbp" and (picture.kind not in PLANES or not has_fbp(assignment)):
        return False
    if picture.kind == "tilted":
        return abs(picture.index) < assignment.n + assignment.scan.rows
    count = {"y": assignment.n, "x": assignment.n, "projection": 1}.get(picture.kind, assignment.scan.rows)
    return 0 <= picture.index < count


def has_fbp(assignment: Assignment) -> bool:
    """Whether there are planes by filtered back projection, which cannot weight a half acquisition."""
    return not is_half_acquisition(assignment.config, assignment.scan, assignment.axis_col)


def added(plane: Plane, parts: Iterable[tuple[int, Pixels]]) -> Pixels:
    """The sum of parts of a plane; each begins at a row of it."""
    whole = np.zeros((plane.rows, plane.cols), np.float32)
    for first, part in parts:
        whole[first : first + len(part)] += part
    return whole


@dataclass(slots=True)
class Joining:
    """Rank 0's collection of the newest parts of all ranks."""

    assignment: Assignment
    _parts: dict[int, SlabParts] = field(default_factory=dict)
    _shown: dict[Picture, tuple[int, ...]] = field(default_factory=dict)

    def add(self, rank: int, parts: SlabParts) -> dict[Shape, Pixels]:
        """Add a rank's newest parts; returns the pictures that are complete and new."""
        self._parts[rank] = parts
        return dict(self._joined(parts.pixels))

    @property
    def stages(self) -> tuple[dict[str, float], ...]:
        """Seconds per stage of the ranks that have reported."""
        return tuple(dict(self._parts[rank].stages) for rank in sorted(self._parts))

    def complete(self, update: int) -> bool:
        """Whether every rank has reported the state after `update` updates."""
        return len(self._parts) == len(self.assignment.slabs) and all(
            parts.update >= update for parts in self._parts.values()
        )

    def _joined(self, pictures: Mapping[Picture, Pixels]) -> Iterator[tuple[Shape, Pixels]]:
        for picture in pictures:
            held = [self._parts[rank] for rank in self._ranks(picture) if rank in self._parts]
            parts = [part for part in held if picture in part.pixels]
            pieces = [part.pixels[picture] for part in parts]
            updates, identity = {part.update for part in parts}, tuple(part.serial for part in parts)
            if len(pieces) < len(self._ranks(picture)) or len(updates) > 1 or self._shown.get(picture) == identity:
                continue
            self._shown[picture] = identity
            step = step_of(picture, self.assignment)
            if picture.kind == "tilted":
                plane = plane_of(picture, self.assignment)
                near = (plane.rows_near(slab.first, slab.stop).start for slab in self.assignment.slabs)
                pixels = added(plane, zip(near, pieces, strict=True))
            else:
                pixels = pieces[0] if picture.kind in _ONE_ROW else np.concatenate(pieces)[::step]
            angle = parts[0].angle_rad if picture.kind == "projection" else None
            yield (
                Shape(
                    picture=picture,
                    update=updates.pop(),
                    rows=pixels.shape[0],
                    cols=pixels.shape[1],
                    step=step,
                    angle_deg=None if angle is None else math.degrees(angle),
                ),
                np.ascontiguousarray(pixels),
            )

    def _ranks(self, picture: Picture) -> Sequence[int]:
        """The ranks that have a part of a picture."""
        slabs = self.assignment.slabs
        if picture.kind not in _ONE_ROW:
            return range(len(slabs))
        return [rank for rank, slab in enumerate(slabs) if slab.first <= picture.index < slab.stop]
