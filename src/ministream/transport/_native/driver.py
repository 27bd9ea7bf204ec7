"""A thread that owns a socket, and what the caller's thread shares with it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from ministream.errors import PeerError


class Driver(ABC):
    """Runs `_run` in a separate thread; an error there is raised in the caller's thread.

    Subclasses hold `_changed` while they access shared state.
    """

    def __init__(self, name: str, url: str) -> None:
        self._url = url
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._over = False
        self._stopping = False
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    @abstractmethod
    def _run(self) -> None:
        """Drive the socket until `_stopping`, or to the end."""

    def _release(self) -> None:  # noqa: B027
        """Close the socket unless `_run` has; no other thread wakes it any more."""

    @abstractmethod
    def _wake(self) -> None:
        """Wake the thread; called with `_changed` held."""

    def _guarded(self) -> None:
        failure: Exception | None = None
        try:
            self._run()
        except PeerError as error:
            failure = type(error)(f"{self._url}: {error}")
        except Exception as error:  # noqa: BLE001 any error is raised in the caller's thread
            failure = error
        with self._changed:
            self._failure = failure
            self._over = True
            self._changed.notify_all()
        self._release()

    def _join(self) -> None:
        """Wait for the thread to end after `_stopping` is set."""
        with self._changed:
            self._wake()
        self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
