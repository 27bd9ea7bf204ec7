"""Between a source and its sender: frames are archived first, and wait there for a slow or disconnected receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from ministream import log
from ministream.app.producer.acquisition import Acquisition
from ministream.errors import StorageError
from ministream.model import Frame
from ministream.storage.archive import Archive

_LOG = log.get(__name__)

# Place in the archive, and the frame itself while it is in memory; without an archive the place is -1.
_Spooled: TypeAlias = tuple[int, Frame | None]


class Spool(Acquisition[_Spooled]):
    """Archives every frame, so that the acquisition never waits for the receiver.

    Frames that wait stay in memory up to `hold_bytes`, and are read back from the archive beyond that. When the archive
    cannot take another frame (its limit, a full disk), the scan goes on without it: the acquisition then waits for the
    receiver. `failed` is the reason. `again` reads the frame that was yielded last once more; None without an archive.
    """

    def __init__(self, frames: Iterator[Frame], archive: Archive, *, hold_bytes: int, stop: Callable[[], None]) -> None:
        super().__init__(frames, stop=stop)
        self._archive, self._hold_bytes = archive, hold_bytes
        self._held_bytes = 0
        self.failed: StorageError | None = None
        self.again: Callable[[], Frame] | None = None

    def __exit__(self, *error: Any) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        super().__exit__(*error)

    def _keep(self, frame: Frame) -> None:
        place = self._archived(frame)
        with self._changed:
            if place < 0:
                self._changed.wait_for(lambda: self._stopping or not self._waiting or self._fits(frame))
            held = place < 0 or self._fits(frame)
            self._held_bytes += frame.pixels.nbytes if held else 0
            self._waiting.append((place, frame if held else None))
            self._changed.notify_all()

    def _archived(self, frame: Frame) -> int:
        """The place of the frame in the archive; -1 once that has failed."""
        if self.failed is None:
            try:
                return self._archive.append(frame)
            except StorageError as error:
                self.failed = error
                _LOG.warning("%s. The scan goes on without an archive, as fast as the receiver takes it", error)
        return -1

    def _fits(self, frame: Frame) -> bool:
        return self._held_bytes + frame.pixels.nbytes <= self._hold_bytes

    def _taken(self, waiting: _Spooled) -> None:
        _, frame = waiting
        self._held_bytes -= frame.pixels.nbytes if frame is not None else 0
        self._changed.notify_all()

    def _frame(self, waiting: _Spooled) -> Frame:
        place, frame = waiting
        self.again = partial(self._archive.read, place) if place >= 0 else None
        return self._archive.read(place) if frame is None else frame
