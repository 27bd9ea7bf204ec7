"""A recorded scan that is still being written, played as it grows.

Whether the writer uses SWMR mode or opens, appends and closes: the file is reopened whenever it has changed, and
what is complete is read. Flags left in the file distinguish a killed writer from a slow one.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ministream import log, source
from ministream.errors import ConfigError, IncompleteError, InputError
from ministream.model import Frame, Scan
from ministream.source._recording import RecordedSource, Recording, RecordingOptions, excluded
from ministream.source._watch import kind_of

_LOG = log.get(__name__)

LOOK_S = 0.05


class FollowOptions(Protocol):
    """Options of a source that follows its file, besides those of every recording."""

    @property
    def stall_timeout_s(self) -> float: ...


class Opened(Protocol):
    """A file as it is now."""

    def recording(self) -> Recording:
        """Its current content. Raises InputError."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


def check_followable(options: RecordingOptions, order: str, repeat: int) -> None:
    """Raises ConfigError for what only a complete scan can do."""
    if order != "sequential" or repeat != 1:
        raise ConfigError(
            f"[producer] order = {order!r}, repeat = {repeat}: [source] follow plays images as they are written. Omit "
            "order and repeat, or play the file when it is complete."
        )
    if options.angles is not None and options.angles.stop is not None and options.projections is None:
        raise ConfigError(
            "[source]: angles has stop, but a file that is being written has no known number of projections. "
            "Give angles a step, or set projections=[0, N]"
        )


class FollowedSource(source.Recorded):
    """Plays images as they are written.

    The scan has as many projections as `projections` or the angles in the file say; 0 where neither does. It is over
    when these have come, or when the writer has closed the file and nothing comes within `stall_timeout_s`.
    """

    def __init__(
        self, path: Path, options: RecordingOptions, opened: Callable[[], Opened], in_swmr_mode: Callable[[], bool]
    ) -> None:
        self._path, self._options, self._opened, self._in_swmr_mode = path, options, opened, in_swmr_mode
        self._stall_timeout_s: float = options.stall_timeout_s  # type: ignore[attr-defined]
        self._first, last = options.projections or (0, None)
        self._stopping = threading.Event()
        self._largest = 0
        recording, look = self._first_look()
        with closing(look):
            images = recording.projections
            # a dataset preallocated at full length gives the number too
            said = max(recording.announced, images.count if images.unwritten() else 0)
            more = said if said > images.count or images.unwritten() else None
            self._end = last if last is not None else more
            part = {"projections": (0, 1), "every": 1, "exclude": []}
            first = RecordedSource(recording, options.model_copy(update=part), order="sequential", repeat=1)
            self._calibration, described = list(first.calibration()), first.describe()
        expected = 0 if self._end is None else len(self._wanted(self._first, self._end))
        self._scan = replace(described, scan_id=uuid.uuid4().hex, projections=expected, notices=())

    def describe(self) -> Scan:
        """Geometry and calibration as in the file when it was opened."""
        return self._scan

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections as they are written.

        Raises IncompleteError when the writer was killed, or has written nothing for too long; InputError for a file
        that shrinks or is damaged.
        """
        yield from self._calibration
        sent, at, changed_at = 0, self._first, time.monotonic()
        in_swmr_mode = False
        while not self._stopping.is_set() and (self._end is None or at < self._end):
            look = self._opened()
            before, in_swmr_mode = in_swmr_mode, self._in_swmr_mode()
            closed = before and not in_swmr_mode
            with closing(look):
                stop, part = self._complete(look, at)
                for frame in part.projections() if part is not None else ():
                    yield replace(frame, index=sent)
                    sent += 1
            if stop > at:
                at, changed_at = stop, time.monotonic()
            elif closed or time.monotonic() - changed_at > self._stall_timeout_s:
                self._stalled(sent)
                break
            else:
                self._stopping.wait(LOOK_S)

    def stop(self) -> None:
        """End `frames` at the next poll."""
        self._stopping.set()

    def close(self) -> None:
        """Nothing is held open between two polls."""
        self.stop()

    def _first_look(self) -> tuple[Recording, Opened]:
        """The file as soon as it has one image and the metadata."""
        deadline = time.monotonic() + self._stall_timeout_s
        while True:
            look = self._opened()
            try:
                recording = look.recording()
                if 0 not in recording.projections.unwritten():
                    return recording, look
                failure = InputError(f"{self._path}: no projection was written")
            except InputError as error:
                failure = error
            look.close()
            if time.monotonic() > deadline:
                raise InputError(f"{failure} (after {self._stall_timeout_s:g} s of waiting, as follow says)")
            self._stopping.wait(LOOK_S)

    def _complete(self, look: Opened, at: int) -> tuple[int, RecordedSource | None]:
        """Up to which projection the file is complete, and the part from `at` on, None where there is nothing new."""
        self._check_size()
        try:
            recording = look.recording()
        except InputError as error:
            # a writer that has the file locked, or is in the middle of writing, leaves it unreadable for a moment
            _LOG.debug("%s: not readable now: %s", self._path, error)
            return at, None
        images = recording.projections
        stop = min([images.count, *images.unwritten()])
        if self._options.angles is None:
            stop = min(stop, int(np.isfinite(recording.angles_rad).sum()))
        first, last = images.block(stop - 1) if stop else (0, 0)
        if last - first > 1 and stop == last == images.count and self._in_swmr_mode():
            stop = first  # the last chunk holds several images, of which the writer may have written some
        stop = min(stop, self._end if self._end is not None else stop)
        wanted = self._wanted(at, stop)
        return max(at, stop), self._part(recording, at, stop) if len(wanted) else None

    def _check_size(self) -> None:
        size = self._path.stat().st_size if kind_of(self._path) == "file" else 0
        if size < self._largest:
            raise InputError(
                f"{self._path}: the file shrank from {self._largest} to {size} bytes while it was followed, and cannot "
                "be read any more. Copy it again, then play it without follow."
            )
        self._largest = size

    def _part(self, recording: Recording, at: int, stop: int) -> RecordedSource:
        """The wanted projections of [at, stop) as a scan of their own."""
        wanted = set(self._wanted(at, stop))
        others = [k for k in range(at, stop) if k not in wanted]
        part = {"projections": (at, stop), "every": 1, "exclude": others}
        return RecordedSource(recording, self._options.model_copy(update=part), order="sequential", repeat=1)

    def _wanted(self, at: int, stop: int) -> list[int]:
        """The projections of [at, stop) that `every` and `exclude` leave."""
        out = set(excluded(self._options, max(stop, 1 << 53)))
        return [k for k in range(at, stop) if (k - self._first) % self._options.every == 0 and k not in out]

    def _stalled(self, sent: int) -> None:
        of = f" of {self._scan.projections}" if self._scan.projections else ""
        text = f"{self._path}: no new image after {sent}{of}"
        if self._in_swmr_mode():
            raise IncompleteError(
                f"{text}, and the writer has not closed the file: it was killed or hangs. What was written is used. "
                "If it is only slow, raise --set source.stall_timeout_s=SECONDS"
            )
        if self._end is not None:
            raise IncompleteError(f"{text}, and the file is closed. If more is to come, raise source.stall_timeout_s.")
        _LOG.info("%s, and the file is closed: the scan is over", text)
