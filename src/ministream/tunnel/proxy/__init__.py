"""Data servers (S2DS), one module each: what carries a session's bytes.

A module of this package defines `class Proxy`, described by `DataServer`; its name is the choice in `[tunnel] kind`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ministream.tunnel.role import Role

# How long a session's certificate is valid for new connections.
SESSION_DAYS = 30.0
# How long a caller may take to prove that it is the session's peer.
HANDSHAKE_S = 5.0
# Connections from one address to one port that a stranger finds. The session's peer has at most the policy's
# `connections_per_session`, by default half as many.
CALLERS_PER_ADDRESS = 128
# One target of one listener: the resolved addresses to try in turn, as (family, socket address).
Addresses = tuple[tuple[int, tuple[Any, ...]], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a data server needs to know about its session.

    `uid` is opaque: no path, command line or configuration contains it. `listeners` are bound and listening
    already; the data server owns them from now on. `on_failure` is called once, with a
    reason, if the data server dies before it is closed. `options` are the plug-in's own.
    """

    uid: str
    listeners: Sequence[socket.socket]
    side: Role
    rate_kbytes_s: int
    on_failure: Callable[[str], None]
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What a data server has carried; None if the program reports nothing. `inward` is towards the dialled side."""

    inward: int | None = None
    outward: int | None = None
    connections: int | None = None
    refused: int | None = None
    cipher: str | None = None


class DataServer(Protocol):
    """One session's data server. `limits_rate` says whether it can keep to `Setup.rate_kbytes_s`."""

    limits_rate: ClassVar[bool]

    def __init__(self, setup: Setup) -> None: ...

    @property
    def offer(self) -> bytes | None:
        """What the other side's data server needs to talk to this one securely; goes over the control channel only."""

    @property
    def secures_itself(self) -> bool:
        """Whether bytes are protected without an offer from the other side (stock peers)."""

    async def forward(self, targets: Sequence[Addresses], peer: bytes | None) -> None:
        """Start or retarget: listener i goes to `targets[i]`; `peer` is the other side's offer, None for plain bytes.

        Returns when connections are served. Raises TunnelError if that fails.
        """

    async def traffic(self) -> Traffic:
        """Counters up to now."""

    async def close(self) -> None:
        """End all connections, release the ports and all resources. Repeatable."""
