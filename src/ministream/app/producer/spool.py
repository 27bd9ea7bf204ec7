"""Between a source and its sender: frames are archived first, and wait there for a slow or disconnected receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from ministream.app.producer.acquisition import Acquisition
from ministream.model import Frame
from ministream.storage.archive import Archive

# Place in the archive, and the frame itself while it is in memory.
_Spooled: TypeAlias = tuple[int, Frame | None]


class Spool(Acquisition[_Spooled]):
    """Archives every frame, so that the acquisition never waits for the receiver.

    Frames that wait stay in memory up to `hold_bytes`, and are read back from the archive beyond that.
    """

    def __init__(self, frames: Iterator[Frame], archive: Archive, *, hold_bytes: int, stop: Callable[[], None]) -> None:
        super().__init__(frames, stop=stop)
        self._archive, self._hold_bytes = archive, hold_bytes
        self._held_bytes = 0

    def _keep(self, frame: Frame) -> None:
        place = self._archive.append(frame)
        with self._changed:
            fits = self._held_bytes + frame.pixels.nbytes <= self._hold_bytes
            self._held_bytes += frame.pixels.nbytes if fits else 0
            self._waiting.append((place, frame if fits else None))
            self._changed.notify_all()

    def _taken(self, waiting: _Spooled) -> None:
        _, frame = waiting
        self._held_bytes -= frame.pixels.nbytes if frame is not None else 0

    def _frame(self, waiting: _Spooled) -> Frame:
        place, frame = waiting
        return self._archive.read(place) if frame is None else frame
