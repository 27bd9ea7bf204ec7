"""The sessions of one control server: a state machine without sockets, clocks or gRPC.

    pending ──hello──▶ ready ──update──▶ active ⟲ update
       └────────┴──────── release, expiry ──────────┘

Time is passed in, in seconds of any one clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import Field

from ministream import config
from ministream.tunnel.address import Endpoint, PortlessHost
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role


class State(enum.StrEnum):
    """Where a session stands."""

    PENDING = "pending"
    READY = "ready"
    ACTIVE = "active"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(kw_only=True, slots=True)
class Session:
    """One tunnel through this server. `rate_kbytes_s` 0 is unlimited; `targets` are hello's, then update's."""

    uid: str
    owner: str
    role: Role
    num_conn: int
    rate_kbytes_s: int
    opened_s: float
    listeners: tuple[Endpoint, ...] = ()
    hello_targets: tuple[Endpoint | PortlessHost, ...] = ()
    targets: tuple[Endpoint, ...] = ()
    state: State = State.PENDING
    changed_s: float = field(default=0.0)


class Quota(config.Section):
    """`[quota]` of the policy file: what one identity, and all of them together, may hold at a time."""

    sessions_per_identity: int = Field(default=64, ge=1)
    connections_per_identity: int = Field(default=256, ge=1)
    connections_per_session: int = Field(default=64, ge=1)
    sessions: int = Field(default=1024, ge=1)
    pending_s: float = Field(default=180.0, gt=0, description="how long a session waits for hello and update")
    lifetime_s: float = Field(default=7 * 86400.0, ge=0, description="0: until it is released")


class Sessions:
    """All live sessions by uid. Ended ones are gone: their uid may be used again."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._live: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def find(self, uid: str) -> Session | None:
        """The live session of that uid."""
        return self._live.get(uid)

    def owned(self, uid: str, caller: str) -> Session:
        """The caller's session. Raises RefusedError: NOT_FOUND, or PERMISSION_DENIED for somebody else's."""
        session = self._live.get(uid)
        if session is None:
            raise RefusedError(
                Code.NOT_FOUND, f"no session {uid}: it was never requested, was released, or has expired"
            )
        if session.owner != caller:
            raise RefusedError(Code.PERMISSION_DENIED, f"session {uid} belongs to another identity")
        return session

    def open(self, *, uid: str, caller: str, role: Role, num_conn: int, rate_kbytes_s: int, now_s: float) -> Session:
        """A new pending session. Raises RefusedError: INVALID_ARGUMENT, ALREADY_EXISTS or RESOURCE_EXHAUSTED."""
        if num_conn < 1:
            raise RefusedError(Code.INVALID_ARGUMENT, f"num_conn is {num_conn}; it must be at least 1")
        if uid in self._live:
            raise RefusedError(Code.ALREADY_EXISTS, f"session {uid} exists: release it or choose another uid")
        self._check_quota(caller, num_conn)
        session = Session(
            uid=uid,
            owner=caller,
            role=role,
            num_conn=num_conn,
            rate_kbytes_s=rate_kbytes_s,
            opened_s=now_s,
            changed_s=now_s,
        )
        self._live[uid] = session
        return session

    def hello(self, session: Session, targets: tuple[Endpoint | PortlessHost, ...], now_s: float) -> None:
        """The application behind the session is ready; a repeated hello replaces its targets."""
        session.hello_targets = targets
        if session.state is State.PENDING:
            session.state = State.READY
        session.changed_s = now_s

    def update(self, session: Session, targets: tuple[Endpoint, ...], now_s: float) -> tuple[Endpoint, ...]:
        """Where each of the connections goes: `targets[i % len]`, hello's list if none are given; not yet applied.

        Raises RefusedError: FAILED_PRECONDITION before hello, INVALID_ARGUMENT where no target is known, or one has no
        port.
        """
        if session.state is State.PENDING:
            raise RefusedError(
                Code.FAILED_PRECONDITION, f"session {session.uid} has received no hello yet: send it first"
            )
        chosen: tuple[Endpoint | PortlessHost, ...] = targets or session.hello_targets
        if not chosen:
            raise RefusedError(Code.INVALID_ARGUMENT, f"session {session.uid}: neither update nor hello named a target")
        session.changed_s = now_s
        return tuple(_with_port(chosen[i % len(chosen)], session) for i in range(session.num_conn))

    def activate(self, session: Session, targets: tuple[Endpoint, ...], now_s: float) -> None:
        """The data server now forwards to `targets`."""
        session.targets = targets
        session.state = State.ACTIVE
        session.changed_s = now_s

    def end(self, session: Session, state: State) -> bool:
        """Take a session out; False if it had already ended."""
        if self._live.get(session.uid) is not session:
            return False
        del self._live[session.uid]
        session.state = state
        return True

    def overdue(self, now_s: float) -> list[Session]:
        """Sessions that waited too long for hello or update, or outlived their lifetime."""
        lifetime_s = self._quota.lifetime_s
        return [
            session
            for session in self
            if (session.state is not State.ACTIVE and now_s - session.changed_s >= self._quota.pending_s)
            or (lifetime_s and now_s - session.opened_s >= lifetime_s)
        ]

    def _check_quota(self, caller: str, num_conn: int) -> None:
        quota = self._quota
        own = [session for session in self._live.values() if session.owner == caller]
        if num_conn > quota.connections_per_session:
            raise _exhausted(f"num_conn {num_conn} exceeds {quota.connections_per_session} per session: ask for fewer")
        if len(self._live) >= quota.sessions:
            raise _exhausted(f"this server holds its {quota.sessions} sessions: try again later")
        if len(own) >= quota.sessions_per_identity:
            raise _exhausted(f"you hold {len(own)} sessions, the most allowed: release one")
        if sum(session.num_conn for session in own) + num_conn > quota.connections_per_identity:
            raise _exhausted(f"{num_conn} more would exceed your {quota.connections_per_identity} connections")


def _exhausted(text: str) -> RefusedError:
    return RefusedError(Code.RESOURCE_EXHAUSTED, text)


def _with_port(target: Endpoint | PortlessHost, session: Session) -> Endpoint:
    if isinstance(target, PortlessHost):
        text = f"session {session.uid}: target {target}, from hello, has no port: name host:port in hello or update"
        raise RefusedError(Code.INVALID_ARGUMENT, text)
    return target
