"""Connections that carry messages of several parts, selected by the scheme of a URL."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Protocol, TypeAlias

from ministream import registry
from ministream.errors import ConfigError
from ministream.model import CurveKeys

Part: TypeAlias = bytes | memoryview


class Channel(Protocol):
    """One connection, seen from the connecting side. A broken one never recovers.

    Only the thread that uses a channel may call its methods, except `wake`.
    """

    @property
    def broken(self) -> str:
        """Why the connection cannot be used any more; empty while it can."""

    def send(self, parts: Sequence[Part]) -> None:
        """Queue a message without copying large parts; they must not change until the peer has them."""

    def recv(self, timeout_s: float) -> list[memoryview] | None:
        """The next message; None when the time is up, when woken, or when the connection broke.

        Each part keeps the memory it lies in alive.
        """

    def wake(self) -> None:
        """Make `recv` return soon; for other threads."""

    def close(self, linger_s: float = 0.0) -> None:
        """Wait up to `linger_s` for what is queued to go out, then end the connection. May be repeated."""


class Listener(Protocol):
    """A bound address and the connections made to it; `peer` names one of them.

    Only the thread that uses a listener may call its methods, except `wake`.
    """

    @property
    def address(self) -> str:
        """The URL to connect to, with the real port."""

    @property
    def trouble(self) -> str:
        """How the last connection without a handshake ended; empty where there was none."""

    def send(self, peer: bytes, parts: Sequence[Part]) -> bool:
        """Queue a message, as `Channel.send` does. False: this peer is gone, or does not read."""

    def recv(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """The next message from any peer; None when the time is up or when woken."""

    def admit(self, peer: bytes) -> None:
        """Admit the peer of the last message; peers not admitted have tight limits on time and bytes."""

    def wake(self) -> None:
        """Make `recv` return soon; for other threads."""

    def close(self, linger_s: float = 0.0) -> None:
        """Wait up to `linger_s` for what is queued to go out, then free the address. May be repeated."""


def listen(url: str, *, max_message_bytes: int, keys: CurveKeys | None = None) -> Listener:
    """Bind `url`; a peer that sends a longer part is cut off. With `keys` only their peers are admitted, encrypted.

    Raises ConfigError naming an address that is in use, not of this machine, invalid, or unable to encrypt.
    """
    listener: Listener = channels_of(url).listen(url, max_message_bytes, keys)
    return listener


def dial(url: str, *, max_message_bytes: int, keys: CurveKeys | None = None) -> Channel:
    """Begin a connection to `url`, once; whether it succeeds shows in `broken`.

    With `keys`, the connection is encrypted, to the one peer that they name.
    Raises ConfigError for an address that is invalid or unable to encrypt.
    """
    channel: Channel = channels_of(url).dial(url, max_message_bytes, keys)
    return channel


def channels_of(url: str) -> ModuleType:
    """The module of this package that has the URL's scheme in its `SCHEMES`.

    Raises ConfigError listing the known schemes.
    """
    modules = [registry.load(__name__, name) for name in registry.names(__name__)]
    channels = {scheme: module for module in modules for scheme in getattr(module, "SCHEMES", ())}
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in channels:
        known = ", ".join(f"{scheme}://" for scheme in sorted(channels))
        raise ConfigError(f"{url!r} is not an address: it must begin with one of {known}")
    return channels[scheme]
