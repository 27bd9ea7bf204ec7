"""The control server (S2CS): `scistream.Control` over gRPC, mutual TLS 1.3 by default.

It runs alone (`ministream s2cs`) and inside rank 0 and the producer job, its event loop in one daemon thread.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

# gRPC's core reports errors on standard error by itself; here they are raised, and reported once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

from ministream import log
from ministream.errors import ConfigError, MinistreamError, TunnelError
from ministream.tunnel import messages
from ministream.tunnel.address import Endpoint, parse_endpoint
from ministream.tunnel.auth import Authenticator, Introspection, TokenFile, Verifier
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.expiry import warn_of
from ministream.tunnel.policy import Policy
from ministream.tunnel.ports import PortPool
from ministream.tunnel.refusal import RefusedError
from ministream.tunnel.revocations import RevocationList
from ministream.tunnel.role import Role
from ministream.tunnel.service import Service
from ministream.tunnel.session_info import Counts, SessionInfo
from ministream.tunnel.session_manager import SessionManager
from ministream.tunnel.tls_listener import TlsListener

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_STOP_S = 1.0
_RELOAD_S = 2.0
_WARN_AGAIN_S = 86400.0
_OPTIONS = [
    # Two servers must not share a port: the second one fails.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.max_concurrent_streams", 256),
]

T = TypeVar("T")
_LOG = log.get(__name__)


class ControlServer:
    """One side's S2CS, started by `start` and ended by `close` (or a `with` block)."""

    def __init__(
        self,
        *,
        side: str | None,
        address: str = "127.0.0.1:0",
        kind: str = "relay",
        data_host: str = "127.0.0.1",
        advertise: str | None = None,
        port_range: tuple[int, int] | None = None,
        credentials: Credentials | None = None,
        insecure: bool = False,
        allow_token: bool = False,
        targets: Sequence[str] = (),
        policy: Policy | Path | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Check everything that can be checked before a socket is opened. Raises ConfigError.

        `side` is PROD, CONS or None for both. `advertise` is the host that callers are given for the data ports, where
        they reach this machine under another address (NAT, container). `targets` are the embedding job's own
        listeners: the default of a hello without targets, and the only allowed targets unless the policy names more.
        `insecure` admits callers without certificate or token, on loopback; `allow_token` accepts tokens from the
        policy's endpoint or the file `tokens` of the credentials. `options` are the data server's own.
        """
        self._address = parse_endpoint(address, any_port=True)
        if credentials is None and not insecure:
            raise ConfigError("the control server needs --credentials DIR: make one with `ministream certs init DIR`")
        if insecure and not self._address.is_loopback:
            raise ConfigError(f"--insecure is for loopback only, and {self._address} is not: use --credentials DIR")
        if credentials is not None:
            credentials.server  # noqa: B018 - raises where there is none
            warn_of(credentials)
        advertised = advertised_host(data_host, advertise)
        self._policy = policy if isinstance(policy, Policy) else Policy.load(policy) if policy else Policy()
        self._credentials = credentials
        self._insecure = insecure
        if allow_token and not (insecure or self._policy.section.plain_data or (options or {}).get("legacy_psk")):
            _LOG.warning(
                "--allow-token without plain_data: stock s2uc passes no certificates on, so its sessions are refused at"
                " update. Set plain_data = true in the policy, or open sessions with `ministream connect --token-file`"
            )
        self._authenticator = Authenticator(
            revocations=RevocationList(credentials.directory) if credentials else None,
            verifiers=_verifiers(self._policy, credentials) if allow_token else (),
            anonymous_allowed=insecure,
        )
        self._manager = SessionManager(
            side=_side(side),
            kind=kind,
            ports=PortPool(data_host, port_range or self._policy.section.port_range),
            policy=self._policy,
            targets=[parse_endpoint(text) for text in targets],
            plain_data=insecure or self._policy.section.plain_data,
            options=options or {},
        )
        self.refusals = Counter[str]()
        self._advertised = advertised
        self._listener: TlsListener | None = None
        self._server: Any = None
        self._caretakers: list[asyncio.Task[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="s2cs", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The address it listens on; the port is known after `start`."""
        return str(self._address)

    def start(self) -> None:
        """Listen. Raises TunnelError if the address is in use or not this machine's."""
        self._thread.start()
        try:
            self._call(self._start())
        except BaseException:
            self.close()
            raise

    def wait_session(self, timeout_s: float) -> SessionInfo:
        """Block until a session is active. Raises PeerLostError."""
        return self._call(self._manager.wait_active(timeout_s))

    def sessions(self) -> list[SessionInfo]:
        """All live sessions with their counters."""
        return self._call(self._manager.list(None))

    def counts(self) -> Counts:
        """All sessions since it started, for metrics."""
        return self._call(self._manager.counts())

    @property
    def credentials_folder(self) -> Path | None:
        """The folder of its certificates; None without TLS."""
        return self._credentials.directory if self._credentials is not None else None

    @property
    def failure(self) -> str | None:
        """Why this side's data server failed last."""
        return self._manager.failure

    def close(self) -> None:
        """End every session and child, then the server. Repeatable."""
        if not self._thread.is_alive():
            return
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        if self._credentials is None:
            self._address = Endpoint(self._address.host, self._add_port(str(self._address)))
        else:
            self._listener = TlsListener(self._credentials)
            self._add_port(self._listener.backend)
        service = Service(self._manager, self._authenticator, self._policy, self._listener, self._advertised)
        self.refusals = service.refusals
        self._server.add_generic_rpc_handlers(_handlers(service))
        await self._server.start()
        if self._listener is not None:
            self._address = await self._listener.start(self._address)
        self._caretakers = [asyncio.create_task(work()) for work in (self._manager.sweep, self._follow_files)]
        security = "insecure" if self._insecure else "mutual TLS 1.3"
        _LOG.info("control server on %s (%s, data server %s)", self._address, security, self._manager.kind)

    async def _follow_files(self) -> None:
        """Take up renewed certificates, and repeat the warnings about those that expire, until cancelled."""
        warned = time.monotonic()
        while self._listener is not None:
            await asyncio.sleep(_RELOAD_S)
            try:
                renewed = self._listener.reload()
            except ConfigError as error:
                _LOG.error("%s; the certificate in use stays", error)
                continue
            if renewed is not None:
                self._credentials = renewed
                _LOG.info("certificates of %s read again", renewed.directory)
            if self._credentials is not None and (renewed or time.monotonic() - warned > _WARN_AGAIN_S):
                warned = time.monotonic()
                warn_of(self._credentials)

    def _add_port(self, address: str) -> int:
        try:
            return int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            text = f"cannot bind {address} (already in use?): choose another address or port with --listen, --control"
            raise TunnelError(text) from error

    async def _stop(self) -> None:
        for task in self._caretakers:
            task.cancel()
        await self._manager.close()
        if self._server is not None:
            await self._server.stop(grace=_STOP_S)
        if self._listener is not None:
            await self._listener.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            coroutine.close()
            raise TunnelError(f"the control server on {self._address} is not running")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _side(text: str | None) -> Role | None:
    if text is None:
        return None
    try:
        return Role(text)
    except ValueError:
        raise ConfigError(f"side {text!r}: choose PROD or CONS, or omit it to serve both") from None


def advertised_host(data_host: str, advertise: str | None) -> str | None:
    """The host that callers are given for the data ports; None: the one that they are bound to.

    Raises ConfigError for one that names no machine, and where the ports are on every interface.
    """
    if advertise is not None:
        try:
            host = parse_endpoint(f"[{advertise}]:1" if ":" in advertise else f"{advertise}:1").host
        except RefusedError as error:
            raise ConfigError(f"--advertise {advertise}: {error}: give a name or address without a port") from error
        if host not in _EVERYWHERE:
            return host
    elif data_host.strip("[]") not in _EVERYWHERE:
        return None
    raise ConfigError(
        f"the data ports cannot be announced at {advertise or data_host}, which names no machine: give the address "
        "that the other side reaches with --advertise HOST, or bind one interface with --data-host HOST"
    )


def _verifiers(policy: Policy, credentials: Credentials | None) -> tuple[Verifier, ...]:
    found: list[Verifier] = []
    # Our own tokens first: they are never sent to the endpoint, and work when it does not answer.
    if credentials is not None and (credentials.directory / "tokens").exists():
        found.append(TokenFile(credentials.directory / "tokens"))
    if policy.section.introspection is not None:
        found.append(Introspection(policy.section.introspection))
    if not found:
        raise ConfigError(
            "--allow-token: no tokens exist; make one with `ministream certs token`,"
            " or name an [introspection] endpoint in the policy"
        )
    return tuple(found)


def _handlers(service: Service) -> tuple[Any, Any]:
    control = {
        method: grpc.unary_unary_rpc_method_handler(
            _answer(service, getattr(service, method)),
            request_deserializer=messages.message_class(sent).FromString,
            response_serializer=messages.message_class(back).SerializeToString,
        )
        for method, (sent, back) in messages.METHODS.items()
    }
    sessions = {
        method: grpc.unary_unary_rpc_method_handler(_answer(service, getattr(service, method)))
        for method in ("sessions", "echo")
    }
    return (
        grpc.method_handlers_generic_handler(messages.SERVICE, control),
        grpc.method_handlers_generic_handler(messages.SESSIONS_SERVICE, sessions),
    )


def _answer(
    service: Service, method: Callable[[str, Any, Any], Awaitable[Any]]
) -> Callable[[Any, Any], Awaitable[Any]]:
    """One method behind the check of its caller. Refusals become gRPC statuses; for any other error the caller gets
    only the number of the log entry.
    """

    async def answer(request: Any, context: Any) -> Any:
        try:
            return await method(await service.admitted(request, context), request, context)
        except RefusedError as refusal:
            service.refusals[refusal.code.value] += 1
            _LOG.warning("%s refused: %s: %s", method.__name__, refusal.code.value, refusal)
            await context.abort(grpc.StatusCode[refusal.code.value], str(refusal))
        except MinistreamError as error:
            number = secrets.token_hex(4)
            _LOG.error("%s failed (%s): %s", method.__name__, number, error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"this server cannot answer: see its log for {number}")
        except Exception:  # noqa: BLE001 - the traceback goes to the log, never to the caller
            number = secrets.token_hex(4)
            _LOG.exception("%s failed (%s)", method.__name__, number)
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error: see this server's log for {number}")

    return answer
