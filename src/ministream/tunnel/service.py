"""The methods that callers reach: names who calls, asks the gateway, forms the answer. gRPC stays in control.py."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Protocol

from ministream.tunnel import messages
from ministream.tunnel.auth import Authenticator
from ministream.tunnel.front import Front
from ministream.tunnel.gateway import Gateway


class Context(Protocol):
    """What is used of gRPC's context of a call."""

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Any: ...

    def set_trailing_metadata(self, metadata: Any) -> None: ...


class Service:
    """`scistream.Control`, and beside it the list of sessions, which SciStream has no method for."""

    def __init__(self, gateway: Gateway, authenticator: Authenticator, front: Front | None) -> None:
        self._gateway = gateway
        self._authenticator = authenticator
        self._front = front

    async def req(self, request: Any, context: Context) -> Any:
        """Answered when the session's hello has come."""
        caller = await self._caller(context)
        session, offer = await self._gateway.request(
            caller, request.uid, role=request.role, num_conn=request.num_conn, rate=request.rate
        )
        try:
            await self._gateway.wait_hello(session)
        except asyncio.CancelledError:
            await self._gateway.abandon(session)
            raise
        _give(context, offer)
        return messages.Response(listeners=map(str, session.listeners), prod_listeners=map(str, session.hello_targets))

    async def hello(self, request: Any, context: Context) -> Any:
        """Role PROD is told nothing but a greeting, every other the session's listeners."""
        caller = await self._caller(context)
        session = await self._gateway.hello(caller, request.uid, request.prod_listeners)
        if request.role == "PROD":
            return messages.AppResponse(message="Sending Prod listeners...")
        return messages.AppResponse(message="Sending listeners...", listeners=map(str, session.listeners))

    async def update(self, request: Any, context: Context) -> Any:
        """Set where the session's connections go."""
        caller = await self._caller(context)
        peer = _metadata(context).get(messages.PEER_KEY)
        session, offer = await self._gateway.update(caller, request.uid, request.remote_listeners, peer)
        _give(context, offer)
        return messages.Response(listeners=map(str, session.listeners), prod_listeners=map(str, session.targets))

    async def release(self, request: Any, context: Context) -> Any:
        """End the session; no error if it has ended."""
        await self._gateway.release(await self._caller(context), request.uid)
        return messages.Response()

    async def sessions(self, _request: bytes, context: Context) -> bytes:
        """The caller's sessions as JSON."""
        found = await self._gateway.list(await self._caller(context))
        return json.dumps([dataclasses.asdict(info) for info in found]).encode()

    async def _caller(self, context: Context) -> str:
        known = self._front.caller(context.peer()) if self._front else None
        return await self._authenticator.identify(known, _metadata(context))


def _give(context: Context, offer: bytes | None) -> None:
    """Beside the answer, where stock clients do not look."""
    if offer is not None:
        context.set_trailing_metadata(((messages.OFFER_KEY, offer),))


def _metadata(context: Context) -> Mapping[str, Any]:
    return dict(context.invocation_metadata() or ())
