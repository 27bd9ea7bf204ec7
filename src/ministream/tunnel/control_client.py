"""A control server as its callers see it: `scistream.Control` over gRPC, its errors named."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

# gRPC's core reports errors on standard error by itself; here they are raised, and reported once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from ministream import log
from ministream.errors import AccessError, ConfigError, PeerLostError, TunnelError
from ministream.tunnel import messages
from ministream.tunnel.address import parse_endpoint
from ministream.tunnel.certificates import KeyPair
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.expiry import warn_of_client
from ministream.tunnel.peer_certificate import certificate_at, context_for
from ministream.tunnel.revocations import RevocationList

_LOG = log.get(__name__)

_CALL_S = 20.0
_RELEASE_S = 5.0
# Large enough for a slow link, small enough for a person who waits for `doctor`.
_ECHO_S = 8.0
_HELLO_TRIES = 10
_HELLO_AGAIN_S = 0.2
_PROBE_S = 5.0
# While we wait for a server, retry every second; gRPC's default backoff grows to two minutes.
_CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 250), ("grpc.max_reconnect_backoff_ms", 1000))


class UnimplementedError(TunnelError):
    """The server has no such method: a stock server, asked for an extension of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How to authenticate: `ca` None is without TLS (loopback only); a pair, a token or neither is presented."""

    ca: bytes | None = None
    pair: KeyPair | None = None
    token: str | None = field(default=None, repr=False)
    revocations: RevocationList | None = None

    @classmethod
    def of(cls, credentials: Credentials | None, token: str | None = None) -> Self:
        """With a directory of credentials, its client pair; None: without TLS."""
        if credentials is None:
            return cls(token=token)
        if token is None:
            warn_of_client(credentials)
        return cls(
            ca=credentials.ca,
            pair=None if token else credentials.client,
            token=token,
            revocations=RevocationList(credentials.directory),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One side's answer to req or update.

    Its listeners, the addresses that hello named or the mapping onto the update's, its data server's offer to the
    other side.
    """

    listeners: tuple[str, ...]
    prod_listeners: tuple[str, ...]
    offer: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Echo:
    """A call there and back in `seconds`; the server's clock is `ahead_s` ahead of ours, ± seconds / 2."""

    seconds: float
    ahead_s: float


class ControlClient:
    """One control server, by address. Errors name it: AccessError, PeerLostError or TunnelError."""

    def __init__(self, address: str, access: Access) -> None:
        """Raises ConfigError where TLS is needed."""
        self.endpoint = parse_endpoint(address)
        if access.ca is None:
            if not self.endpoint.is_loopback:
                raise ConfigError(f"{self.endpoint} is not loopback: give --credentials DIR")
            self._channel = grpc.insecure_channel(str(self.endpoint), options=_CHANNEL_OPTIONS)
        else:
            key, certificate = (access.pair.key, access.pair.certificate) if access.pair else (None, None)
            secure = grpc.ssl_channel_credentials(access.ca, key, certificate)
            self._channel = grpc.secure_channel(str(self.endpoint), secure, options=_CHANNEL_OPTIONS)
        self._access: Access | None = access
        self._metadata = (("authorization", access.token),) if access.token else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def wait_for(self, seconds: float) -> None:
        """Wait until the server answers, `seconds` at most; the next call reports what is wrong."""
        if seconds > 0:
            # Any answer will do, also that there is no such service, as stock servers say.
            check = self._channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
            with suppress(grpc.RpcError):
                check(b"", timeout=seconds, wait_for_ready=True)

    def open(
        self, uid: str, role: str, *, num_conn: int, rate: int, targets: Sequence[str], timeout_s: float
    ) -> Answer:
        """req and, while it waits, hello.

        Stock servers whose data server runs in a container give five listeners whatever was asked for: the first
        `num_conn` are used. Raises TunnelError for fewer, or for another number from a server of ours.
        """
        request = messages.Request(uid=uid, role=role, num_conn=num_conn, rate=rate)
        with self._translated("req"):
            waiting = self._method("req").future(request, timeout=timeout_s, metadata=self._metadata)
            try:
                self._hello_after(waiting, messages.Hello(uid=uid, role=role, prod_listeners=targets))
                response = waiting.result()
            finally:
                waiting.cancel()
        answer = _answer(response, waiting)
        if (count := len(answer.listeners)) > num_conn and answer.offer is None:
            text = "control server %s gave %d listeners, %d were asked for: using %s"
            answer = replace(answer, listeners=answer.listeners[:num_conn])
            _LOG.warning(text, self.endpoint, count, num_conn, ", ".join(answer.listeners))
        elif count != num_conn:
            raise TunnelError(f"control server {self.endpoint} gave {count} listeners instead of {num_conn}")
        return answer

    def update(self, uid: str, role: str, targets: Sequence[str], peer: bytes | None) -> Answer:
        """Let bytes flow to `targets` (none: the ones hello named); `peer` is the other side's offer."""
        metadata = () if peer is None else ((messages.PEER_KEY, peer),)
        message = messages.UpdateTargets(uid=uid, role=role, remote_listeners=targets)
        return _answer(*self._ask("update", message, metadata=metadata))

    def release(self, uid: str) -> None:
        """End the session; no error if it has ended."""
        self._ask("release", messages.Release(uid=uid), timeout_s=_RELEASE_S)

    def sessions(self) -> list[dict[str, Any]]:
        """The caller's sessions on this server, as `SessionInfo` in JSON; a stock server has no such list."""
        with self._translated("sessions"):
            call = self._channel.unary_unary(f"/{messages.SESSIONS_SERVICE}/sessions", bytes, bytes)
            found = json.loads(call(b"", timeout=_CALL_S, metadata=self._metadata))
        assert isinstance(found, list)
        return found

    def echo(self, payload: bytes) -> Echo:
        """Send bytes there and back. Raises UnimplementedError for a stock server, TunnelError for other bytes."""
        with self._translated("echo"):
            call = self._channel.unary_unary(f"/{messages.SESSIONS_SERVICE}/echo", bytes, bytes)
            asked, began = time.time(), time.perf_counter()
            answer, record = call.with_call(payload, timeout=_ECHO_S, metadata=self._metadata)
            seconds = time.perf_counter() - began
        clock = dict(record.trailing_metadata() or ()).get(messages.CLOCK_KEY)
        if answer != payload or clock is None:
            raise TunnelError(f"control server {self.endpoint}: echo: {len(answer)} other bytes came back")
        return Echo(seconds=seconds, ahead_s=float(clock) - (asked + seconds / 2))

    def holds(self, uid: str) -> bool:
        """Whether the server has this session of the caller's; a stock server cannot say, and counts as having it."""
        try:
            return any(one["uid"] == uid for one in self.sessions())
        except UnimplementedError:
            return True

    def probe(self, listeners: Sequence[str]) -> None:
        """Connect to each listener that can be reached from here. Raises TunnelError for one that does not accept.

        Loopback addresses of another machine are skipped: here they would name this machine.
        """
        for endpoint in map(parse_endpoint, listeners):
            if endpoint.is_loopback and not self.endpoint.is_loopback:
                continue
            try:
                socket.create_connection((endpoint.host, endpoint.port), _PROBE_S).close()
            except OSError as error:
                where = f"data port {endpoint} of control server {self.endpoint}"
                raise TunnelError(f"{where} does not accept connections: {error}") from error

    def _hello_after(self, waiting: Any, message: Any) -> None:
        """Say hello once the server knows the session: ours waits for it, a stock one must be asked again."""
        for attempt in range(_HELLO_TRIES):
            hello = self._method("hello").future(message, timeout=_CALL_S, metadata=self._metadata)
            either = threading.Event()
            for call in (waiting, hello):
                call.add_done_callback(lambda _, event=either: event.set())
            either.wait()
            # If req has failed, hello will too: req's own reason is the one to show.
            if waiting.done():
                waiting.result()
            try:
                hello.result()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNKNOWN or attempt == _HELLO_TRIES - 1:
                    raise
                time.sleep(_HELLO_AGAIN_S)
            else:
                return

    def _method(self, name: str) -> Any:
        sent, back = messages.METHODS[name]
        return self._channel.unary_unary(
            f"/{messages.SERVICE}/{name}",
            request_serializer=messages.message_class(sent).SerializeToString,
            response_deserializer=messages.message_class(back).FromString,
        )

    def _ask(
        self, name: str, message: Any, *, metadata: Sequence[Any] = (), timeout_s: float = _CALL_S
    ) -> tuple[Any, Any]:
        """The response, and gRPC's record of the call."""
        with self._translated(name):
            method = self._method(name)
            response, call = method.with_call(message, timeout=timeout_s, metadata=(*self._metadata, *metadata))
            return response, call

    def _check_server(self) -> None:
        """Before the first call: no certificate of the revocation list may answer. Raises AccessError.

        The check uses a separate connection, because gRPC does not show the certificate it verified.
        """
        access, self._access = self._access, None
        if access is None or access.ca is None or not access.revocations:
            return
        try:
            serial = certificate_at(self.endpoint, context_for(access.ca), _PROBE_S).serial_number
        except OSError:
            return  # the call itself reports what is wrong
        if serial in access.revocations:
            text = f"control server {self.endpoint}: its certificate ({serial:x}) is revoked"
            raise AccessError(f"{text}: ask its operator to renew it with `ministream certs renew`")

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        self._check_server()
        try:
            yield
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            where = f"control server {self.endpoint}: {name}: {text}"
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise AccessError(where) from error
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise PeerLostError(f"{where} ({code.name.lower()})") from error
            kind = UnimplementedError if code is grpc.StatusCode.UNIMPLEMENTED else TunnelError
            raise kind(f"{where} ({code.name.lower()})") from error


def _answer(response: Any, call: Any) -> Answer:
    offer = dict(call.trailing_metadata() or ()).get(messages.OFFER_KEY)
    return Answer(listeners=tuple(response.listeners), prod_listeners=tuple(response.prod_listeners), offer=offer)
