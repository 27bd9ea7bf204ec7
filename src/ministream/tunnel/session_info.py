"""A session's public view."""

from __future__ import annotations

from dataclasses import dataclass
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
