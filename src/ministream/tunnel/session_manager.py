"""What a control server does for an admitted caller: sessions, ports and data servers. No gRPC here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ministream import log, registry
from ministream.errors import ConfigError, PeerLostError
from ministream.tunnel.address import Endpoint
from ministream.tunnel.auth import Lapse
from ministream.tunnel.policy import Policy
from ministream.tunnel.ports import PortPool, endpoint_of
from ministream.tunnel.proxy import DataServer, Setup, Traffic
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role
from ministream.tunnel.session_info import Counts, SessionInfo
from ministream.tunnel.sessions import Session, Sessions, State
from ministream.tunnel.targets import check_reachable, default_rules, parse_all, parse_hello, resolve

PROXIES = "ministream.tunnel.proxy"
# Stock s2uc sends hello half a second after req, and times out after five.
_HELLO_GRACE_S = 3.0
_SWEEP_S = 1.0

_LOG = log.get(__name__)


@dataclass(kw_only=True, slots=True)
class _Live:
    """What belongs to a session besides its state: sockets' owner, and who waits for it."""

    server: DataServer
    said_hello: asyncio.Event
    lock: asyncio.Lock
    lapse: Lapse
    secure: bool = False


class SessionManager:
    """One side of the tunnel. Callers were identified and admitted, and uids checked, by the service.

    `targets` are the embedding job's own: the default of a hello without targets, and all that is allowed by default.
    """

    def __init__(
        self,
        *,
        side: Role | None,
        kind: str,
        ports: PortPool,
        policy: Policy,
        targets: Sequence[Endpoint],
        plain_data: bool,
        options: dict[str, Any],
    ) -> None:
        """`side` restricts the sessions' role; raises ConfigError for an unknown `kind`."""
        self.kind = kind
        self._proxy = registry.load(PROXIES, kind).Proxy
        if policy.rate_for(0) and not self._proxy.limits_rate:
            raise ConfigError(f"rate_kbytes_s of the policy: {kind} cannot limit a session's rate: choose --kind relay")
        self._side = side
        self._ports = ports
        self._policy = policy
        self._own = tuple(targets)
        self._plain_data = plain_data
        self._options = options
        self._sessions = Sessions(policy.quota)
        self._live: dict[str, _Live] = {}
        self._changed = asyncio.Condition()
        self._waiting_hellos: dict[str, int] = {}
        self._doubt = ""
        self._ending: set[asyncio.Task[None]] = set()
        self._forwarding: set[asyncio.Task[None]] = set()
        self._past = Counts()
        # Why a data server failed last, for the last line of the embedding job.
        self.failure: str | None = None

    async def request(
        self, caller: str, uid: str, *, role: Role, num_conn: int, rate: int, lapse: Lapse
    ) -> tuple[Session, bytes | None]:
        """Open a session with its listeners. Returns it, and the data server's offer to the other side.

        It ends when the caller's credential lapses.
        """
        if self._side is not None and role != self._side:
            raise RefusedError(
                Code.PERMISSION_DENIED, f"this server is the {self._side} side: it opens no {role} session"
            )
        if rate < 0:
            raise RefusedError(Code.INVALID_ARGUMENT, f"rate is {rate}; kB/s, 0 for no limit")
        limit = self._policy.rate_for(rate)
        if limit and not self._proxy.limits_rate:
            text = f"this server's {self.kind} cannot limit the rate to {limit} kB/s: leave --rate out"
            raise RefusedError(Code.FAILED_PRECONDITION, text)
        session = self._sessions.open(
            uid=uid, caller=caller, role=role, num_conn=num_conn, rate_kbytes_s=limit, now_s=time.monotonic()
        )
        try:
            self._policy.check_role(caller, role)
            server = self._serve(session)
        except BaseException:
            self._sessions.end(session, State.RELEASED)
            raise
        self._past.opened += 1
        self._live[uid] = _Live(server=server, said_hello=asyncio.Event(), lock=asyncio.Lock(), lapse=lapse)
        limited = f", at most {limit} kB/s" if limit else ", no rate limit" if rate else ""
        _LOG.info("session %s opened by %s: %s, %d connections%s", uid, caller, role, num_conn, limited)
        await self._announce()
        return session, server.offer

    async def wait_hello(self, session: Session) -> None:
        """Wait for the session's hello. Raises RefusedError when it ends or is overdue before."""
        live = self._live.get(session.uid)
        if live is not None:
            await live.said_hello.wait()
        if session.state is State.EXPIRED:
            raise RefusedError(Code.DEADLINE_EXCEEDED, f"session {session.uid}: no hello in time; send it after req")
        if session.state is State.RELEASED:
            raise RefusedError(
                Code.FAILED_PRECONDITION, f"session {session.uid} was released while req waited for hello"
            )

    async def hello(self, caller: str, uid: str, listeners: Sequence[str]) -> Session:
        """The application listens on `listeners`; hello precedes its req by at most a few seconds."""
        targets = parse_hello(listeners) or self._own
        session = await self._find_soon(caller, uid)
        self._sessions.hello(session, targets, time.monotonic())
        self._live[uid].said_hello.set()
        await self._announce()
        return session

    async def update(
        self, caller: str, uid: str, listeners: Sequence[str], peer: bytes | None
    ) -> tuple[Session, bytes | None]:
        """Let the session's connections flow to `listeners` (none: hello's), authenticated by the other side's offer.

        Returns the session, and again this side's own offer.
        """
        named = parse_all(listeners)
        session = self._sessions.owned(uid, caller)
        live = self._live[uid]
        task = asyncio.get_running_loop().create_task(self._forward(session, live, caller, named, peer))
        self._forwarding.add(task)
        task.add_done_callback(self._forwarded)
        await asyncio.shield(task)
        return session, live.server.offer

    async def _forward(
        self, session: Session, live: _Live, caller: str, named: tuple[Endpoint, ...], peer: bytes | None
    ) -> None:
        """In a task of its own, as `_end`: cancelled half way, it would leave a process that no session knows."""
        async with live.lock:
            targets = self._sessions.update(session, named, time.monotonic())
            allowed = default_rules(session.role, peer, self._own)
            addresses = {target: await resolve(target, caller, self._policy, allowed) for target in set(targets)}
            if peer is None and not self._plain_data and not live.server.secures_itself:
                text = (
                    "this server carries no data without TLS, and update carried no certificate of the other side:"
                    " use `ministream connect`, or allow plain data in the server's policy"
                )
                raise RefusedError(Code.PERMISSION_DENIED, text)
            if session.role is Role.CONS and peer is not None:
                await check_reachable(addresses)
            await live.server.forward([addresses[target] for target in targets], peer)
            if session.state in (State.RELEASED, State.EXPIRED):
                raise RefusedError(Code.NOT_FOUND, f"session {session.uid} ended during its update")
            live.secure = peer is not None
            self._sessions.activate(session, targets, time.monotonic())
        _LOG.info("session %s forwards to %s", session.uid, ", ".join(map(str, targets)))
        await self._announce()

    def _forwarded(self, task: asyncio.Task[None]) -> None:
        self._forwarding.discard(task)
        if not task.cancelled():
            task.exception()  # its caller has it, if there is one still

    async def release(self, caller: str, uid: str) -> None:
        """End a session; no error if there is none."""
        session = self._sessions.find(uid)
        if session is not None:
            if not self._policy.is_admin(caller):
                self._sessions.owned(uid, caller)
            await asyncio.shield(self._end_soon(session, State.RELEASED, "released"))

    async def abandon(self, session: Session) -> None:
        """The caller of req has gone: its session ends."""
        await asyncio.shield(self._end_soon(session, State.RELEASED, "caller gone"))

    async def list(self, caller: str | None) -> list[SessionInfo]:
        """The caller's sessions; all of them for an administrator and for the embedding job (None)."""
        every = caller is None or self._policy.is_admin(caller)
        return [await self._info(s) for s in self._sessions if every or s.owner == caller]

    async def counts(self) -> Counts:
        """What all sessions have carried, also those that have ended."""
        now = dataclasses.replace(self._past, ended=self._past.ended.copy(), sessions=Counter())
        for session in self._sessions:
            now.sessions[str(session.role), str(session.state)] += 1
            if (live := self._live.get(session.uid)) is not None:
                now.add(await live.server.traffic())
        return now

    async def wait_active(self, timeout_s: float) -> SessionInfo:
        """The first session whose bytes can flow. Raises PeerLostError when there is none in time."""

        def first() -> Session | None:
            return next((s for s in self._sessions if s.state is State.ACTIVE), None)

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while (session := first()) is None:
                    await self._changed.wait()
        except TimeoutError:
            text = f"no tunnel session was opened within {timeout_s:g} s: run `ministream connect` with both addresses"
            raise PeerLostError(text) from None
        return await self._info(session)

    async def sweep(self) -> None:
        """End overdue sessions, and those whose owner's credential has lapsed, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            for session in self._sessions.overdue(time.monotonic()):
                self._end_soon(session, State.EXPIRED, "expired")
            for session in self._sessions:
                if (why := self._lapsed(session)) is not None:
                    _LOG.warning("session %s ends: %s", session.uid, why)
                    self._end_soon(session, State.EXPIRED, why)

    async def close(self) -> None:
        """End every session."""
        for session in self._sessions:
            self._end_soon(session, State.RELEASED, "server ends")
        await asyncio.gather(*self._ending, *self._forwarding, return_exceptions=True)

    def _lapsed(self, session: Session) -> str | None:
        """A list that is missing or broken for a moment ends no session; new callers are rejected meanwhile."""
        live = self._live.get(session.uid)
        try:
            return None if live is None else live.lapse()
        except ConfigError as error:
            if self._doubt != str(error):
                self._doubt = str(error)
                _LOG.error("%s; open sessions go on", error)
            return None

    def _serve(self, session: Session) -> DataServer:
        listeners = self._ports.bind(session.num_conn)
        session.listeners = tuple(map(endpoint_of, listeners))

        def failed(reason: str) -> None:
            self.failure = f"tunnel session {session.uid} lost: {reason}"
            _LOG.error("%s", self.failure)
            self._end_soon(session, State.RELEASED, reason)

        try:
            server: DataServer = self._proxy(
                Setup(
                    uid=session.uid,
                    listeners=listeners,
                    side=session.role,
                    rate_kbytes_s=session.rate_kbytes_s,
                    on_failure=failed,
                    options=self._options,
                )
            )
        except BaseException:
            for listener in listeners:
                listener.close()
            raise
        return server

    async def _find_soon(self, caller: str, uid: str) -> Session:
        """The session, waiting briefly for a req that is still under way; one identity's waits are limited."""
        if self._sessions.find(uid) is None:
            waiting = self._waiting_hellos.get(caller, 0)
            if waiting >= self._policy.quota.sessions_per_identity:
                raise RefusedError(Code.RESOURCE_EXHAUSTED, f"{waiting} of your hellos already wait for a req")
            self._waiting_hellos[caller] = waiting + 1
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_HELLO_GRACE_S), self._changed:
                        while self._sessions.find(uid) is None:
                            await self._changed.wait()
            finally:
                left = self._waiting_hellos.pop(caller) - 1
                if left:
                    self._waiting_hellos[caller] = left
        return self._sessions.owned(uid, caller)

    def _end_soon(self, session: Session, state: State, why: str) -> asyncio.Task[None]:
        """End it in a task of its own, which `close` waits for.

        gRPC cancels a call whose caller has gone or lost patience: a session that is half ended would leave processes.
        """
        task = asyncio.get_running_loop().create_task(self._end(session, state, why))
        self._ending.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a session did not end in order", exc_info=error)

    async def _end(self, session: Session, state: State, why: str) -> None:
        if not self._sessions.end(session, state):
            return
        live = self._live.pop(session.uid)
        live.said_hello.set()
        await self._announce()
        async with live.lock:
            carried = await live.server.traffic()
            await live.server.close()
        self._past.ended[str(session.state)] += 1
        self._past.add(carried)
        total = (
            ""
            if carried.inward is None or carried.outward is None
            else f", {(carried.inward + carried.outward) / 1e6:.1f} MB"
        )
        _LOG.info("session %s closed: %s%s", session.uid, why, total)

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _info(self, session: Session) -> SessionInfo:
        live = self._live.get(session.uid)
        return SessionInfo.of(
            session,
            kind=self.kind,
            secure=live.secure if live else False,
            traffic=await live.server.traffic() if live else Traffic(),
            now_s=time.monotonic(),
        )
