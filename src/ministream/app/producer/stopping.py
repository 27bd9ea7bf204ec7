"""The signals that stop the producer job."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from ministream import log
from ministream.app.stop_signals import SAME_SIGNAL_S, STOP_SIGNALS
from ministream.errors import IncompleteError
from ministream.model import Frame

_LOG = log.get(__name__)


class StopSignals:
    """The first signal ends the acquisition: what was acquired is still sent, and the stream ends in order.

    Before anything was sent (`streaming` is False), and at the second signal, the job ends at once, with
    IncompleteError. `name` is the first signal's, empty without one; `cut` says that it ended the acquisition. Signals
    that are ignored at the start stay ignored (`nohup`); outside the main thread nothing is installed.
    """

    def __init__(self) -> None:
        self.name = ""
        self.streaming = self.cut = False
        self._at_s = 0.0
        self._ended = threading.Event()
        self._stop_source: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def frames(self, frames: Iterator[Frame], stop_source: Callable[[], None]) -> Iterator[Frame]:
        """The frames up to the first signal; `stop_source` ends a source that waits for its next image."""
        self._stop_source = stop_source
        for frame in frames:
            yield frame
            if self._ended.is_set():
                break
        self.cut = self._ended.is_set()

    def sleep(self, seconds: float) -> None:
        """Sleep, until the first signal at most."""
        self._ended.wait(seconds)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.name and now - self._at_s < SAME_SIGNAL_S:
            return
        if self.name or not self.streaming:
            for each in self._before:
                signal.signal(each, signal.SIG_IGN)
            when = "before anything was sent" if not self.name else f"at once, by the second signal after {self.name}"
            raise IncompleteError(f"stopped by {name} {when}")
        self.name, self._at_s = name, now
        # in a thread: the main thread may hold a lock that this needs
        threading.Thread(target=self._end, name="stop", daemon=True).start()

    def _end(self) -> None:
        _LOG.warning("%s: sending what was acquired; a second signal ends the job at once", self.name)
        self._ended.set()
        if self._stop_source is not None:
            self._stop_source()
