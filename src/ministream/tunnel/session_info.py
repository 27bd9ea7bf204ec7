"""What others see of the sessions: each one, and all of them together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from ministream.tunnel.proxy import Traffic
from ministream.tunnel.role import Role
from ministream.tunnel.sessions import Session, State


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionInfo:
    """What `ministream sessions` and the embedding job see."""

    uid: str
    owner: str
    role: Role
    state: State
    kind: str
    listeners: tuple[str, ...]
    targets: tuple[str, ...]
    age_s: float
    rate_kbytes_s: int
    secure: bool
    traffic: Traffic

    @property
    def cipher(self) -> str | None:
        """TLS version and cipher suite between the gateways; None before the first connection, or without TLS."""
        return self.traffic.cipher

    @classmethod
    def of(cls, session: Session, *, kind: str, secure: bool, traffic: Traffic, now_s: float) -> Self:
        """As it is at `now_s`."""
        return cls(
            uid=session.uid,
            owner=session.owner,
            role=session.role,
            state=session.state,
            kind=kind,
            listeners=tuple(map(str, session.listeners)),
            targets=tuple(map(str, session.targets)),
            age_s=now_s - session.opened_s,
            rate_kbytes_s=session.rate_kbytes_s,
            secure=secure,
            traffic=traffic,
        )


@dataclass(kw_only=True, slots=True)
class Counts:
    """All sessions since the server started: those open now by role and state, those that ended by state, bytes."""

    sessions: Counter[tuple[str, str]] = field(default_factory=Counter)
    opened: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    inward: int = 0
    outward: int = 0
    refused_connections: int = 0

    def add(self, traffic: Traffic) -> None:
        """Count what one session has carried; a program that reports nothing adds nothing."""
        self.inward += traffic.inward or 0
        self.outward += traffic.outward or 0
        self.refused_connections += traffic.refused or 0
