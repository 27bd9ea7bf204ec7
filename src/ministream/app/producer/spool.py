"""Between a source and its sender: frames are archived first, and wait there for a slow or disconnected receiver."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from ministream.model import Frame, FrameKind, Scan
from ministream.source import Source
from ministream.storage.archive import Archive


class ArchivedSource(Source):
    """Sends an archive instead of acquiring: the scan of a killed producer, under the same id."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        expected, held = archive.scan.projections, archive.count(FrameKind.PROJECTION)
        self.dropped = max(0, expected - held)

    def describe(self) -> Scan:
        """The scan as it was described when it was acquired."""
        return self._archive.scan

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, projections, as they were acquired."""
        return self._archive.frames()

    def close(self) -> None:
        """The archive is closed by its opener."""


class Spool:
    """Reads a source in a separate thread and archives every frame, so that the acquisition never waits for the
    receiver.

    Frames that wait stay in memory up to `hold_bytes`, and are read back from the archive beyond that. `stop` ends the
    source's frames from another thread.
    """

    def __init__(self, frames: Iterator[Frame], archive: Archive, *, hold_bytes: int, stop: Callable[[], None]) -> None:
        self._frames, self._archive, self._hold_bytes, self._stop = frames, archive, hold_bytes, stop
        self._waiting: deque[tuple[FrameKind, int, Frame | None]] = deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self._over = self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._acquire, name="acquisition", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._stop()
        self._thread.join()

    def __iter__(self) -> Iterator[Frame]:
        """Every frame, in order, until the source ends. Raises what the source or the archive raised."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    break
                kind, number, frame = self._waiting.popleft()
                self._held_bytes -= frame.pixels.nbytes if frame is not None else 0
            yield self._archive.read(kind, number) if frame is None else frame
        if self._failure is not None:
            raise self._failure

    def _acquire(self) -> None:
        try:
            for frame in self._frames:
                self._keep(frame)
                if self._stopping:
                    break
        except BaseException as error:  # noqa: BLE001 any error is raised in the sending thread
            self._failure = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _keep(self, frame: Frame) -> None:
        number = self._archive.count(frame.kind)
        self._archive.append(frame)
        with self._changed:
            fits = self._held_bytes + frame.pixels.nbytes <= self._hold_bytes
            self._held_bytes += frame.pixels.nbytes if fits else 0
            self._waiting.append((frame.kind, number, frame if fits else None))
            self._changed.notify_all()
