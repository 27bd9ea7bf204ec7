"""Frames that the receiver has not taken yet, and the policy that drops some when there are too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from ministream import log
from ministream.app.producer.acquisition import Acquisition
from ministream.model import Frame, FrameKind

_LOG = log.get(__name__)

Overflow: TypeAlias = Literal["block", "drop-oldest", "decimate"]


class Backlog(Acquisition[Frame]):
    """Keeps at most `limit` projections that wait.

    When one more comes, `drop-oldest` drops the one that has waited longest; `decimate` drops every second one, so
    that the rest still covers the angles evenly. Flats and darks are never dropped.
    """

    def __init__(
        self, frames: Iterator[Frame], *, overflow: Literal["drop-oldest", "decimate"], limit: int,
        stop: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(frames, stop=stop)
        self.dropped = 0
        self._untold: list[int] = []
        self._overflow, self._limit = overflow, limit

    def drops(self) -> list[int]:
        """Projections dropped since the last call."""
        with self._changed:
            untold, self._untold = self._untold, []
        return untold

    def _keep(self, frame: Frame) -> None:
        with self._changed:
            self._waiting.append(frame)
            projections = [waits for waits in self._waiting if waits.kind is FrameKind.PROJECTION]
            if len(projections) > self._limit:
                self._drop(projections)
            self._changed.notify_all()

    def _taken(self, waiting: Frame) -> None:
        """Nothing is counted for it."""

    def _frame(self, waiting: Frame) -> Frame:
        return waiting

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
