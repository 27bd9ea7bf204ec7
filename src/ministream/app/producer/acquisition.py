"""A source that is read in a separate thread, so that the acquisition continues while the receiver is slow."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from ministream.model import Frame

Waiting = TypeVar("Waiting")


class Acquisition(ABC, Generic[Waiting]):
    """Reads `frames` in a thread; what waits for the receiver is kept as a subclass decides.

    `stop` ends the source's frames from another thread. Subclasses hold `_changed` while they access `_waiting`.
    """

    def __init__(self, frames: Iterator[Frame], *, stop: Callable[[], None]) -> None:
        self._frames, self._stop = frames, stop
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._over = self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._acquire, name="acquisition", daemon=True)

    @abstractmethod
    def _keep(self, frame: Frame) -> None:
        """Take one frame from the source; in the acquiring thread."""

    @abstractmethod
    def _taken(self, waiting: Waiting) -> None:
        """The frame that has waited longest is taken; called with `_changed` held."""

    @abstractmethod
    def _frame(self, waiting: Waiting) -> Frame:
        """The frame meant; in the sending thread."""

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
        """The frames that are kept, in order, until the source ends. Raises what reading or keeping them raised."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    break
                waiting = self._waiting.popleft()
                self._taken(waiting)
            yield self._frame(waiting)
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
