"""Where a sender keeps the frames that are not yet acknowledged."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

from ministream.wire.native import Part

Parts: TypeAlias = tuple[Part, ...]


class FrameStore(Protocol):
    """Holds the frame `first` and those after it, as they go out."""

    @property
    def first(self) -> int:
        """The oldest frame held; the next one to come where none is."""

    def append(self, parts: Parts) -> None:
        """Keep one more frame."""

    def get(self, seq: int) -> Parts:
        """A frame that is held."""

    def release(self, below: int) -> None:
        """Forget the frames below `below`."""


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
        while self._first < below:
            self._frames.popleft()
            self._first += 1
