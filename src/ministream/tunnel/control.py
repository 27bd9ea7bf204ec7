"""The control server (S2CS): `scistream.Control` over gRPC, mutual TLS 1.3 by default.

It runs alone (`ministream s2cs`) and inside rank 0 and the producer job, its event loop in one daemon thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

# gRPC has no switch for the TLS version. Its TLS 1.2 ciphers are set here to ones that need an RSA key, which our
# credentials never have; TLS 1.3 negotiates apart from that list. gRPC reads this once, before its first TLS use.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384")

import grpc
import grpc.aio
from cryptography import x509

from ministream import log
from ministream.errors import ConfigError, MinistreamError, TunnelError
from ministream.tunnel import certificates, messages
from ministream.tunnel.address import Endpoint, parse_endpoint
from ministream.tunnel.credentials import Credentials, RevocationList
from ministream.tunnel.gateway import Gateway, SessionInfo
from ministream.tunnel.policy import Policy
from ministream.tunnel.ports import PortPool
from ministream.tunnel.refusal import Code, RefusedError

ANONYMOUS = "anonymous"
_STOP_S = 10.0
_MAX_MESSAGE_BYTES = 64 * 1024
_OPTIONS = [
    # Two servers must not share a port: the second is to fail.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.max_concurrent_streams", 512),
]

T = TypeVar("T")
logger = log.get(__name__)


class Identity:
    """Who calls: the certificate's common name over mutual TLS, `anonymous` on an insecure server."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._revoked = RevocationList(credentials.directory) if credentials else None

    def of(self, context: Any) -> str:
        """Raises RefusedError (UNAUTHENTICATED)."""
        if self._revoked is None:
            return ANONYMOUS
        pem = context.auth_context().get("x509_pem_cert", [b""])[0]
        if not pem:
            raise RefusedError(
                Code.UNAUTHENTICATED, "this server needs a client certificate: see `ministream certs client`"
            )
        certificate = x509.load_pem_x509_certificate(pem)
        name, _ = certificates.names_of(certificate)
        if certificate.serial_number in self._revoked:
            raise RefusedError(Code.UNAUTHENTICATED, f"the certificate of {name!r} is revoked: ask for a new one")
        return name


class Control:
    """The four methods of the service: gRPC in front, the gateway behind."""

    def __init__(self, gateway: Gateway, identity: Identity) -> None:
        self._gateway = gateway
        self._identity = identity

    async def req(self, request: Any, context: Any) -> Any:
        """Answered when the session's hello has come."""
        caller = self._identity.of(context)
        session, offer = await self._gateway.request(caller, request.uid, request.role, request.num_conn, request.rate)
        try:
            await self._gateway.wait_hello(session)
        except asyncio.CancelledError:
            await self._gateway.abandon(session)
            raise
        if offer is not None:
            context.set_trailing_metadata(((messages.OFFER_KEY, offer),))
        return messages.Response(listeners=map(str, session.listeners), prod_listeners=map(str, session.hello_targets))

    async def hello(self, request: Any, context: Any) -> Any:
        """Role PROD is told nothing but a greeting, every other the session's listeners."""
        caller = self._identity.of(context)
        session = await self._gateway.hello(caller, request.uid, request.prod_listeners)
        if request.role == "PROD":
            return messages.AppResponse(message="Sending Prod listeners...")
        return messages.AppResponse(message="Sending listeners...", listeners=map(str, session.listeners))

    async def update(self, request: Any, context: Any) -> Any:
        """Set where the session's connections go."""
        caller = self._identity.of(context)
        peer = dict(context.invocation_metadata() or ()).get(messages.PEER_KEY)
        session = await self._gateway.update(caller, request.uid, request.remote_listeners, peer)
        return messages.Response(listeners=map(str, session.listeners), prod_listeners=map(str, session.targets))

    async def release(self, request: Any, context: Any) -> Any:
        """End the session; no error if it has ended."""
        await self._gateway.release(self._identity.of(context), request.uid)
        return messages.Response()

    def handler(self) -> Any:
        """What a gRPC server serves."""
        handlers = {}
        for method, (sent, back) in messages.METHODS.items():
            handlers[method] = grpc.unary_unary_rpc_method_handler(
                _answer(getattr(self, method)),
                request_deserializer=messages.message_class(sent).FromString,
                response_serializer=messages.message_class(back).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(messages.SERVICE, handlers)


def _answer(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Refusals become gRPC statuses; anything unexpected is logged here and tells the caller nothing."""

    async def answer(request: Any, context: Any) -> Any:
        try:
            return await method(request, context)
        except RefusedError as refusal:
            logger.warning("%s refused: %s: %s", method.__name__, refusal.code.value, refusal)
            await context.abort(grpc.StatusCode[refusal.code.value], str(refusal))
        except MinistreamError as error:
            logger.error("%s failed: %s", method.__name__, error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except Exception:
            logger.exception("%s failed", method.__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error: see the server's log")

    return answer


class ControlServer:
    """One side's S2CS, started by `start` and ended by `close` (or a `with` block)."""

    def __init__(
        self,
        *,
        side: str | None,
        address: str = "127.0.0.1:0",
        kind: str = "relay",
        data_host: str = "127.0.0.1",
        port_range: tuple[int, int] | None = None,
        credentials: Credentials | None = None,
        insecure: bool = False,
        targets: Sequence[str] = (),
        policy: Policy | Path | None = None,
    ) -> None:
        """Check everything that can be checked before a socket is opened. Raises ConfigError.

        `side` is PROD, CONS or None for both. `targets` are the embedding job's own listeners: what a hello that
        names none stands for, and all that may be connected to unless the policy says more.
        """
        self._address = parse_endpoint(address, any_port=True)
        if credentials is None and not insecure:
            raise ConfigError("the control server needs --credentials DIR: make one with `ministream certs init DIR`")
        if insecure and not self._address.is_loopback:
            raise ConfigError(f"--insecure is for loopback only, and {self._address} is not: use --credentials DIR")
        self._credentials = None if insecure else credentials
        if self._credentials is not None:
            _ = self._credentials.server
        self._side, self._kind = side, kind
        self._ports = PortPool(data_host, port_range)
        self._policy = policy if isinstance(policy, Policy) else Policy.load(policy) if policy else Policy()
        self._targets = [parse_endpoint(text) for text in targets]
        self._insecure = insecure
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="s2cs", daemon=True)
        self._gateway: Gateway | None = None
        self._server: Any = None
        self._sweeper: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where it listens, the port known after `start`."""
        return str(self._address)

    def start(self) -> None:
        """Listen. Raises TunnelError if the address is taken or not this machine's."""
        self._thread.start()
        try:
            self._call(self._start())
        except BaseException:
            self.close()
            raise

    def wait_session(self, timeout_s: float) -> SessionInfo:
        """Block until a session is active. Raises PeerLostError."""
        return self._call(self._started.wait_active(timeout_s))

    def sessions(self) -> list[SessionInfo]:
        """All live sessions with their counters."""
        return self._call(self._started.list(None))

    def close(self) -> None:
        """End every session and child, then the server. May be called again."""
        if not self._thread.is_alive():
            return
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def _started(self) -> Gateway:
        if self._gateway is None:
            raise TunnelError("the control server is not running: start it first")
        return self._gateway

    async def _start(self) -> None:
        self._gateway = Gateway(
            side=self._side,
            kind=self._kind,
            ports=self._ports,
            policy=self._policy,
            targets=self._targets,
            plain_data=self._insecure or self._policy.section.plain_data,
        )
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((Control(self._gateway, Identity(self._credentials)).handler(),))
        try:
            port = self._add_port()
        except RuntimeError as error:
            text = f"control address {self._address} is taken, or not this machine's: name another with --control"
            raise TunnelError(text) from error
        self._address = Endpoint(self._address.host, port)
        await self._server.start()
        self._sweeper = asyncio.create_task(self._gateway.sweep())
        logger.info("control server on %s (%s)", self._address, "insecure" if self._insecure else "mutual TLS 1.3")

    def _add_port(self) -> int:
        if self._credentials is None:
            return int(self._server.add_insecure_port(str(self._address)))
        pair = self._credentials.server
        secure = grpc.ssl_server_credentials(
            [(pair.key, pair.certificate)], root_certificates=self._credentials.ca, require_client_auth=True
        )
        return int(self._server.add_secure_port(str(self._address), secure))

    async def _stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._gateway is not None:
            await self._gateway.close()
        if self._server is not None:
            await self._server.stop(grace=1.0)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
