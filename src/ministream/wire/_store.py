"""Where a sender keeps the unacknowledged frames, in wire form."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ministream.wire.native import Part

Parts: TypeAlias = tuple[Part, ...]
Reload: TypeAlias = Callable[[], Part]
"""Reads the payload of one frame once more, from where the frame is archived."""


@dataclass(slots=True)
class _Held:
    """One message; without `payload` that is to be reloaded, or the message has none."""

    header: Part
    payload: Part | None
    reload: Reload | None


class FrameStore:
    """Holds the frame `first` and those after it; without one, `first` is the next frame. Frames are not copied."""

    def __init__(self) -> None:
        self.first = 0
        self._unloaded = 0  # payloads below this were taken out of memory
        self._frames: deque[_Held] = deque()

    def append(self, parts: Parts, reload: Reload | None = None) -> None:
        """Keep one more frame; `reload` reads its payload again where it was taken out of memory."""
        self._frames.append(_Held(parts[0], parts[1] if len(parts) > 1 else None, reload))

    def get(self, seq: int) -> Parts:
        """A frame that is held."""
        held = self._frames[seq - self.first]
        payload = held.reload() if held.payload is None and held.reload is not None else held.payload
        return (held.header,) if payload is None else (held.header, payload)

    def unload(self, below: int) -> None:
        """Take the payloads of the frames below `below` out of memory; what cannot be read again is released."""
        for seq in range(max(self._unloaded, self.first), min(below, self.first + len(self._frames))):
            held = self._frames[seq - self.first]
            if held.payload is not None and held.reload is None:
                self.release(seq + 1)
            held.payload = None
        self._unloaded = max(self._unloaded, below)

    def release(self, below: int) -> None:
        """Frames below `below` are not needed any more, whether held already or still to come."""
        while self._frames and self.first < below:
            self._frames.popleft()
            self.first += 1
        self.first = max(self.first, below)
