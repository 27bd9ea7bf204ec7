"""Connections within one process: replaces the network in single-process runs and tests.

Messages are handed over by reference. An address is any name: `inproc://NAME`.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from ministream.errors import ConfigError
from ministream.model import CurveKeys

SCHEMES = ("inproc",)

Part: TypeAlias = bytes | memoryview
_Parts: TypeAlias = list[memoryview]
_Item = TypeVar("_Item")

_lock = threading.Lock()
_listeners: dict[str, InprocListener] = {}


class InprocChannel:
    """The connecting end; see `transport._channels.Channel`."""

    def __init__(self, listener: InprocListener | None, peer: bytes, max_message_bytes: int) -> None:
        self.inbox: queue.SimpleQueue[_Parts | None] = queue.SimpleQueue()
        self.broken = "" if listener else "nothing listens at this name"
        self.max_message_bytes = max_message_bytes
        self._listener = listener
        self._peer = peer

    def send(self, parts: Sequence[Part]) -> None:
        if self._listener is None or self.broken:
            return
        if _too_long(parts, self._listener.max_message_bytes):
            self.cut("a message was too long")
            self._listener.forget(self._peer)
        else:
            self._listener.inbox.put((self._peer, [memoryview(part) for part in parts]))

    def recv(self, timeout_s: float) -> _Parts | None:
        return _get(self.inbox, 0.0 if self.broken else timeout_s)

    def wake(self) -> None:
        self.inbox.put(None)

    def cut(self, why: str) -> None:
        """No more messages are sent or accepted; delivered ones can still be received."""
        self.broken = why
        self.wake()

    def close(self, linger_s: float = 0.0) -> None:
        self.cut("closed")
        if self._listener is not None:
            self._listener.forget(self._peer)


class InprocListener:
    """The listening end; see `transport._channels.Listener`."""

    def __init__(self, url: str, max_message_bytes: int) -> None:
        self.address = url
        self.inbox: queue.SimpleQueue[tuple[bytes, _Parts] | None] = queue.SimpleQueue()
        self.max_message_bytes = max_message_bytes
        self.trouble = ""
        self._peers: dict[bytes, InprocChannel] = {}
        self._names = itertools.count(1)

    def accept(self, max_message_bytes: int) -> InprocChannel:
        """A new connection to this listener; the caller holds the lock."""
        peer = b"%d" % next(self._names)
        self._peers[peer] = InprocChannel(self, peer, max_message_bytes)
        return self._peers[peer]

    def forget(self, peer: bytes) -> None:
        """A connection has ended."""
        with _lock:
            self._peers.pop(peer, None)

    def send(self, peer: bytes, parts: Sequence[Part]) -> bool:
        with _lock:
            channel = self._peers.get(peer)
        if channel is None:
            return False
        if _too_long(parts, channel.max_message_bytes):
            channel.cut("a message was too long")
            self.forget(peer)
            return False
        channel.inbox.put([memoryview(part) for part in parts])
        return True

    def recv(self, timeout_s: float) -> tuple[bytes, _Parts] | None:
        return _get(self.inbox, timeout_s)

    def admit(self, peer: bytes) -> None:
        """Within a process there are no strangers."""

    def wake(self) -> None:
        self.inbox.put(None)

    def close(self, linger_s: float = 0.0) -> None:
        with _lock:
            _listeners.pop(self.address, None)
            peers, self._peers = self._peers, {}
        for channel in peers.values():
            channel.cut("closed by the peer")


def listen(url: str, max_message_bytes: int, keys: CurveKeys | None = None) -> InprocListener:
    """Bind a name of this process; see `transport._channels.listen`."""
    _refuse(keys, url)
    with _lock:
        if url in _listeners:
            raise ConfigError(f"cannot bind {url} (already in use): choose another name")
        _listeners[url] = InprocListener(url, max_message_bytes)
        return _listeners[url]


def dial(url: str, max_message_bytes: int, keys: CurveKeys | None = None) -> InprocChannel:
    """Connect to a name of this process; see `transport._channels.dial`."""
    _refuse(keys, url)
    with _lock:
        listener = _listeners.get(url)
        return listener.accept(max_message_bytes) if listener else InprocChannel(None, b"", max_message_bytes)


def _refuse(keys: CurveKeys | None, url: str) -> None:
    if keys is not None:
        raise ConfigError(f"{url} stays within this process and cannot be encrypted: omit --curve, or use tcp://")


def _get(inbox: queue.SimpleQueue[_Item | None], timeout_s: float) -> _Item | None:
    try:
        return inbox.get(timeout=timeout_s)
    except queue.Empty:
        return None


def _too_long(parts: Sequence[Part], limit: int) -> bool:
    return any(memoryview(part).nbytes > limit for part in parts)
