"""The methods that callers reach. Every call passes one check (`Service.admitted`) before its method runs; gRPC stays
in control.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from ministream.tunnel import messages
from ministream.tunnel.address import Endpoint, check_uid
from ministream.tunnel.auth import Authenticator
from ministream.tunnel.policy import Policy
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role
from ministream.tunnel.session_manager import SessionManager
from ministream.tunnel.sessions import Session
from ministream.tunnel.tls_listener import TlsListener


class Context(Protocol):
    """The part of gRPC's call context that is used."""

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Any: ...

    def set_trailing_metadata(self, metadata: Any) -> None: ...


class Service:
    """`scistream.Control`, plus a list of sessions, for which SciStream has no method.

    A method gets its caller's identity, which only `admitted` can give. `refusals` counts refused calls by status.
    """

    def __init__(
        self,
        manager: SessionManager,
        authenticator: Authenticator,
        policy: Policy,
        listener: TlsListener | None,
        advertised: str | None = None,
    ) -> None:
        self._manager = manager
        self._authenticator = authenticator
        self._policy = policy
        self._listener = listener
        self.refusals = Counter[str]()
        self._advertised = advertised

    async def admitted(self, request: Any, context: Context) -> str:
        """The caller's identity, once it is known and may use this server; the request's uid is well-formed then.

        Raises RefusedError.
        """
        peer = context.peer()
        known = self._listener.caller(peer) if self._listener else None
        identity = await self._authenticator.identify(known, _metadata(context))
        self._policy.admit(identity)
        if self._listener:
            self._listener.authenticated(peer, identity)
        if hasattr(request, "uid"):
            check_uid(request.uid)
        return identity

    async def req(self, caller: str, request: Any, context: Context) -> Any:
        """Answered when the session's hello has come."""
        known = self._listener.caller(context.peer()) if self._listener else None
        lapse = await self._authenticator.lapse(known, _metadata(context))
        session, offer = await self._manager.request(
            caller, request.uid, role=_role(request.role), num_conn=request.num_conn, rate=request.rate, lapse=lapse
        )
        try:
            await self._manager.wait_hello(session)
        except asyncio.CancelledError:
            await self._manager.abandon(session)
            raise
        _give(context, offer)
        return messages.Response(listeners=self._listeners(session), prod_listeners=map(str, session.hello_targets))

    async def hello(self, caller: str, request: Any, _context: Context) -> Any:
        """Role PROD gets only a greeting, the others get the session's listeners."""
        session = await self._manager.hello(caller, request.uid, request.prod_listeners)
        if request.role == Role.PROD:
            return messages.AppResponse(message="Sending Prod listeners...")
        return messages.AppResponse(message="Sending listeners...", listeners=self._listeners(session))

    async def update(self, caller: str, request: Any, context: Context) -> Any:
        """Set the targets of the session's connections."""
        peer = _metadata(context).get(messages.PEER_KEY)
        session, offer = await self._manager.update(caller, request.uid, request.remote_listeners, peer)
        _give(context, offer)
        return messages.Response(listeners=self._listeners(session), prod_listeners=map(str, session.targets))

    async def release(self, caller: str, request: Any, _context: Context) -> Any:
        """End the session; no error if it has ended."""
        await self._manager.release(caller, request.uid)
        return messages.Response()

    async def sessions(self, caller: str, _request: bytes, _context: Context) -> bytes:
        """The caller's sessions as JSON."""
        found = await self._manager.list(caller)
        return json.dumps([dataclasses.asdict(info) for info in found]).encode()

    async def echo(self, _caller: str, request: bytes, context: Context) -> bytes:
        """The request, and this machine's clock (UNIX seconds), for `doctor`; a request is as long as any may be."""
        context.set_trailing_metadata(((messages.CLOCK_KEY, f"{time.time():.6f}"),))
        return request

    def _listeners(self, session: Session) -> list[str]:
        """The data ports as the other side reaches them."""
        return [str(Endpoint(self._advertised or bound.host, bound.port)) for bound in session.listeners]


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise RefusedError(Code.INVALID_ARGUMENT, "role must be PROD or CONS") from None


def _give(context: Context, offer: bytes | None) -> None:
    """Metadata of the answer, which stock clients ignore."""
    if offer is not None:
        context.set_trailing_metadata(((messages.OFFER_KEY, offer),))


def _metadata(context: Context) -> Mapping[str, Any]:
    return dict(context.invocation_metadata() or ())
