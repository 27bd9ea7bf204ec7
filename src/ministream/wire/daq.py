"""A data-acquisition stream of aps-mini-apps put in order: calibration before the projections it corrects.

The sender numbers its dataset (flats, then darks, then projections) in `seq`, but may send it interleaved, so that
early projections arrive before most flats. They wait here until every lower number has arrived, or until what waits
reaches a bound. Sans I/O: messages in, frames out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from numpy.typing import NDArray

from ministream import log
from ministream.errors import FrameError
from ministream.model import Frame, FrameKind
from ministream.wire import timage
from ministream.wire.angles import AngleCheck, AngleUnit
from ministream.wire.timage import Image, ImageType

_log = log.get(__name__)

_KINDS = {
    ImageType.PROJECTION: FrameKind.PROJECTION,
    ImageType.WHITE: FrameKind.FLAT,
    ImageType.WHITE_RESET: FrameKind.FLAT,
    ImageType.DARK: FrameKind.DARK,
    ImageType.DARK_RESET: FrameKind.DARK,
}
_RESETS = (ImageType.WHITE_RESET, ImageType.DARK_RESET)


class Numbers:
    """The sequence numbers of one pass over the dataset that have arrived."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._frontier = 0

    def __contains__(self, seq: int) -> bool:
        return seq in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, seq: int) -> None:
        self._seen.add(seq)
        while self._frontier in self._seen:
            self._frontier += 1

    def start_at(self, base: int) -> None:
        """From now on, only numbers from `base` on can be missing."""
        self._frontier = base
        self.add(base)

    def complete_below(self, seq: int) -> bool:
        """No number below `seq` is missing."""
        return self._frontier >= seq


class DaqStream:
    """One DAQ stream, from its first TImage to its end.

    `receive()` returns the frames that may go on, in order; their pixels are views of the messages. Before the
    first projection, and again after every new flat or dark, come the whole sets, each numbered from 0. Projections
    are numbered as they go on; with `needs_flats` the first ones wait for a set even if they come before it by number.
    """

    def __init__(
        self, *, pixel_dtype: str, angle_unit: AngleUnit, hold_bytes: int, needs_flats: bool, peer: str
    ) -> None:
        self._dtype = pixel_dtype
        self._angles = AngleCheck(angle_unit, peer)
        self._hold_bytes = hold_bytes
        self._needs_flats = needs_flats
        self._peer = peer
        self._numbers = Numbers()
        self._last_seq = -1
        self._length = 0
        self._missing = 0
        self._open = False
        self._held: list[Frame] = []
        self._first_held = 0
        self._sets: dict[FrameKind, dict[int, Frame]] = {FrameKind.DARK: {}, FrameKind.FLAT: {}}
        self._projections = 0
        self.shape: tuple[int, int] | None = None
        self.axis_col: float | None = None
        self.received = 0
        self.passes = 1

    @property
    def missing(self) -> int:
        """At the end: how many numbers never arrived. What a single pass lost behind its last image is not known."""
        return self._missing + self._length - len(self._numbers)

    def receive(self, message: bytes | memoryview, arrived_s: float) -> list[Frame]:
        """Take one TImage that arrived at UNIX time `arrived_s`; return the frames that may pass.

        Raises FrameError, naming the peer and the field, for an invalid message; the stream continues.
        """
        try:
            image = timage.decode(message)
            pixels = self._pixels(image)
            frames = self._number(image.seq)
        except FrameError as error:
            raise FrameError(f"{self._peer}: {error}", reason=error.reason) from None
        self.received += 1
        kind = _KINDS[image.image_type]
        is_projection = kind is FrameKind.PROJECTION
        angle_rad = self._angles.radians(image.rotation) if is_projection else 0.0
        frame = Frame(kind=kind, index=0, angle_rad=angle_rad, pixels=pixels, acquired_s=arrived_s)
        return frames + (self._projection(image, frame) if is_projection else self._calibration(image, frame))

    def end(self) -> list[Frame]:
        """The stream is over: waiting projections continue with the available calibration."""
        self._angles.check()
        if not self._held:
            return []
        if not self._complete():
            _log.warning("%s: the stream ended with calibration missing", self._peer)
        return self._release()

    def _pixels(self, image: Image) -> NDArray[Any]:
        if image.image_type is ImageType.END:
            raise FrameError(
                f"TImage seq {image.seq}: itype 0 END marks a reconstruction, not a detector image", reason="kind"
            )
        if image.dims[0] != 1:
            raise FrameError(f"TImage seq {image.seq}: dims {image.dims} has {image.dims[0]} slices", reason="size")
        shape = image.dims[1:]
        if self.shape is not None and shape != self.shape:
            raise FrameError(
                f"TImage seq {image.seq}: dims {shape} differ from {self.shape} of the images before", reason="size"
            )
        pixels: NDArray[Any] = image.pixels(self._dtype)[0]
        self.shape = shape
        if self.axis_col is None and image.center > 0:
            self.axis_col = image.center - 0.5
        return pixels

    def _number(self, seq: int) -> list[Frame]:
        """Record a number; a repeated one begins the next pass and releases what waited for the old one."""
        if seq < 0 or seq == self._last_seq:
            raise FrameError(
                f"TImage: seq {seq} after {self._last_seq}, but every image needs a unique number",
                reason="sequence",
            )
        frames: list[Frame] = []
        if seq in self._numbers:
            frames = self._release() if self._held else []
            self._angles.check()
            self._missing = self.missing
            self._numbers = Numbers()
            self.passes += 1
        self._last_seq = seq
        self._length = max(self._length, seq + 1)
        self._numbers.add(seq)
        return frames

    def _projection(self, image: Image, frame: Frame) -> list[Frame]:
        if self._open:
            return [self._numbered(frame)]
        self._first_held = min(image.seq, self._first_held) if self._held else image.seq
        self._held.append(frame)
        if self._complete():
            return self._release()
        if len(self._held) * frame.pixels.nbytes > self._hold_bytes:
            flats, darks = len(self._sets[FrameKind.FLAT]), len(self._sets[FrameKind.DARK])
            _log.warning(
                "%s: %d projections wait for their calibration, more than [aps] hold_mib allows: "
                "they are corrected with the %d flats and %d darks that arrived",
                *(self._peer, len(self._held), flats, darks),
            )
            return self._release()
        return []

    def _calibration(self, image: Image, frame: Frame) -> list[Frame]:
        images = self._sets[frame.kind]
        if image.image_type in _RESETS:
            # Interleaving may bring images of the new set before the one that announces it: the numbers decide.
            for old in [seq for seq in images if seq < image.seq]:
                del images[old]
        if self._open:
            self._open = False
            self._numbers.start_at(image.seq)
        images[image.seq] = frame
        # A set that follows projections by number is incomplete before the next projection.
        return self._release() if image.seq < self._first_held and self._complete() else []

    def _complete(self) -> bool:
        calibrated = bool(self._sets[FrameKind.FLAT]) or not self._needs_flats
        return bool(self._held) and calibrated and self._numbers.complete_below(self._first_held)

    def _release(self) -> list[Frame]:
        self._open = True
        frames = [
            dataclasses.replace(images[seq], index=index)
            for images in self._sets.values()
            for index, seq in enumerate(sorted(images))
        ]
        frames += map(self._numbered, self._held)
        self._held.clear()
        return frames

    def _numbered(self, frame: Frame) -> Frame:
        self._projections += 1
        return dataclasses.replace(frame, index=self._projections - 1)
