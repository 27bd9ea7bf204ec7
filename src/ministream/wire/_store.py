"""Where a sender keeps the unacknowledged frames, in wire form."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

from ministream.wire.native import Part

Parts: TypeAlias = tuple[Part, ...]


class FrameStore(Protocol):
    """Holds the frame `first` and those after it."""

    @property
    def first(self) -> int:
        """The oldest frame that is held; without one, the next frame."""

    def append(self, parts: Parts) -> None:
        """Keep one more frame."""

    def get(self, seq: int) -> Parts:
        """A frame that is held."""

    def release(self, below: int) -> None:
        """Frames below `below` are not needed any more, whether held already or still to come."""


class MemoryStore:
    """Keeps references to the frames; the credit bounds how many."""

    def __init__(self) -> None:
        self._first = 0
        self._frames: deque[Parts] = deque()

    @property
    def first(self) -> int:
        return self._first

    def append(self, parts: Parts) -> None:
        self._frames.append(parts)

    def get(self, seq: int) -> Parts:
        return self._frames[seq - self._first]

    def release(self, below: int) -> None:
        while self._frames and self._first < below:
            self._frames.popleft()
            self._first += 1
        self._first = max(self._first, below)
