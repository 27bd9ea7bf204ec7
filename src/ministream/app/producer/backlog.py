"""Frames that the receiver has not taken yet, and the policy that drops some when there are too many."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal, Self, TypeAlias

from ministream import log
from ministream.model import Frame, FrameKind

_LOG = log.get(__name__)

Overflow: TypeAlias = Literal["block", "drop-oldest", "decimate"]


class Backlog:
    """Reads a source in a separate thread, so that the acquisition continues while the receiver is slow.

    At most `limit` projections wait. When one more comes, `drop-oldest` drops the one that has waited longest;
    `decimate` drops every second one, so that the rest still covers the angles evenly. Flats and darks are never
    dropped. `stop` ends the source's frames from another thread.
    """

    def __init__(
        self, frames: Iterator[Frame], *, overflow: Literal["drop-oldest", "decimate"], limit: int,
        stop: Callable[[], None],
    ) -> None:  # fmt: skip
        self.dropped = 0
        self._untold: list[int] = []
        self._frames, self._overflow, self._limit, self._stop = frames, overflow, limit, stop
        self._waiting: deque[Frame] = deque()
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
        """The frames that are not dropped, in order, until the source ends. Raises what the source raised."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    break
                frame = self._waiting.popleft()
            yield frame
        if self._failure is not None:
            raise self._failure

    def drops(self) -> list[int]:
        """Projections dropped since the last call."""
        with self._changed:
            untold, self._untold = self._untold, []
        return untold

    def _acquire(self) -> None:
        try:
            for frame in self._frames:
                self._add(frame)
                if self._stopping:
                    break
        except BaseException as error:  # noqa: BLE001 any error is raised in the sending thread
            self._failure = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _add(self, frame: Frame) -> None:
        with self._changed:
            self._waiting.append(frame)
            projections = [waits for waits in self._waiting if waits.kind is FrameKind.PROJECTION]
            if len(projections) > self._limit:
                self._drop(projections)
            self._changed.notify_all()

    def _drop(self, projections: list[Frame]) -> None:
        if not self.dropped:
            _LOG.warning(
                "the receiver is slower than the acquisition: more than %d projections wait, overflow = %s drops some",
                *(self._limit, self._overflow),
            )
        lost = {id(frame) for frame in (projections[:1] if self._overflow == "drop-oldest" else projections[::2])}
        self._waiting = deque(frame for frame in self._waiting if id(frame) not in lost)
        self.dropped += len(lost)
        self._untold += [frame.index for frame in projections if id(frame) in lost]
