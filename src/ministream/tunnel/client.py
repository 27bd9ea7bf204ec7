"""The user client (S2UC): opens a session on both control servers, joins them, and lets go again."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

# gRPC's core reports errors on standard error by itself; here they are raised, and said once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from ministream import log
from ministream.errors import AccessError, ConfigError, PeerError, PeerLostError, TunnelError
from ministream.tunnel import messages
from ministream.tunnel.address import Endpoint, parse_endpoint
from ministream.tunnel.credentials import Credentials

_CALL_S = 20.0
_REQ_S = 185.0
_RELEASE_S = 5.0

logger = log.get(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """One side's answer to req: its listeners, the targets hello named, and its data server's offer."""

    listeners: tuple[str, ...]
    prod_listeners: tuple[str, ...]
    offer: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A session open on both sides. The consumer dials `cons_listeners`."""

    uid: str
    prod: str
    cons: str
    prod_listeners: tuple[str, ...]
    cons_listeners: tuple[str, ...]
    secure: bool


class ControlClient:
    """One control server, by address. Errors name it: AccessError, PeerLostError or TunnelError."""

    def __init__(self, address: str, credentials: Credentials | None, *, token: str | None = None) -> None:
        """`credentials` None speaks without TLS, to loopback only. Raises ConfigError."""
        self._endpoint = parse_endpoint(address)
        if credentials is None:
            if not self._endpoint.is_loopback:
                raise ConfigError(f"{self._endpoint} is not loopback: give --credentials DIR")
            self._channel = grpc.insecure_channel(str(self._endpoint))
        else:
            pair = credentials.client
            secure = grpc.ssl_channel_credentials(credentials.ca, pair.key, pair.certificate)
            self._channel = grpc.secure_channel(str(self._endpoint), secure)
        self._metadata = [("authorization", token)] if token else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    @property
    def address(self) -> Endpoint:
        """The server's address."""
        return self._endpoint

    def open(
        self, uid: str, role: str, *, num_conn: int, rate: int, targets: Sequence[str], timeout_s: float
    ) -> Opened:
        """req and, while it waits, hello."""
        request = messages.Request(uid=uid, role=role, num_conn=num_conn, rate=rate)
        with self._translated("req"):
            waiting = self._method("req").future(request, timeout=timeout_s, metadata=tuple(self._metadata))
            try:
                self.hello(uid, role, targets)
                response = waiting.result()
            except TunnelError:
                # hello fails if req has: req's own reason is the one to show.
                if waiting.done():
                    waiting.result()
                raise
            finally:
                waiting.cancel()
            offer = dict(waiting.trailing_metadata() or ()).get(messages.OFFER_KEY)
        listeners = tuple(response.listeners)
        if len(listeners) != num_conn:
            raise TunnelError(f"{self._endpoint} gave {len(listeners)} listeners instead of {num_conn}")
        return Opened(listeners=listeners, prod_listeners=tuple(response.prod_listeners), offer=offer)

    def hello(self, uid: str, role: str, targets: Sequence[str]) -> None:
        """Tell the server that the application is there."""
        self._ask("hello", messages.Hello(uid=uid, role=role, prod_listeners=targets))

    def update(self, uid: str, role: str, targets: Sequence[str], peer: bytes | None) -> tuple[str, ...]:
        """Let bytes flow to `targets`; `peer` is the other side's offer. Returns the mapping made of them."""
        metadata = [(messages.PEER_KEY, peer)] if peer is not None else []
        message = messages.UpdateTargets(uid=uid, role=role, remote_listeners=targets)
        return tuple(self._ask("update", message, metadata=metadata).prod_listeners)

    def release(self, uid: str) -> None:
        """End the session; no error if it has ended."""
        self._ask("release", messages.Release(uid=uid), timeout_s=_RELEASE_S)

    def sessions(self) -> list[dict[str, Any]]:
        """The caller's sessions on this server, as `SessionInfo` in JSON; a stock server has no such list."""
        with self._translated("sessions"):
            call = self._channel.unary_unary(f"/{messages.SESSIONS_SERVICE}/sessions", bytes, bytes)
            found = json.loads(call(b"", timeout=_CALL_S, metadata=tuple(self._metadata)))
        assert isinstance(found, list)
        return found

    def _method(self, name: str) -> Any:
        sent, back = messages.METHODS[name]
        return self._channel.unary_unary(
            f"/{messages.SERVICE}/{name}",
            request_serializer=messages.message_class(sent).SerializeToString,
            response_deserializer=messages.message_class(back).FromString,
        )

    def _ask(self, name: str, message: Any, *, metadata: Sequence[Any] = (), timeout_s: float = _CALL_S) -> Any:
        with self._translated(name):
            return self._method(name)(message, timeout=timeout_s, metadata=(*self._metadata, *metadata))

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            where = f"control server {self._endpoint}: {name}: {text}"
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise AccessError(where) from error
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise PeerLostError(f"{where} ({code.name.lower()})") from error
            raise TunnelError(f"{where} ({code.name.lower()})") from error


def connect(
    prod: str,
    cons: str,
    credentials: Credentials | None,
    num_conn: int = 1,
    *,
    rate: int = 0,
    targets: Sequence[str] = (),
    uid: str | None = None,
    timeout_s: float = 60.0,
) -> Connection:
    """Open one session through both servers, PROD first, so that bytes can flow; all of it or nothing.

    `targets` are the producer's data addresses; none: the ones its own control server knows. `rate` is in kB/s,
    0 for no limit. Raises AccessError, PeerLostError or TunnelError.
    """
    uid = uid or str(uuid.uuid4())
    with ControlClient(prod, credentials) as prod_client, ControlClient(cons, credentials) as cons_client:
        try:
            give_up = time.monotonic() + timeout_s
            producer = prod_client.open(uid, "PROD", num_conn=num_conn, rate=rate, targets=targets, timeout_s=timeout_s)
            consumer = cons_client.open(
                uid, "CONS", num_conn=num_conn, rate=rate, targets=(), timeout_s=max(1.0, give_up - time.monotonic())
            )
            # PROD first: it must know whom to let in before the consumer's relay dials it.
            prod_client.update(uid, "PROD", producer.prod_listeners, consumer.offer)
            cons_client.update(uid, "CONS", producer.listeners, producer.offer)
        except BaseException:
            _release(uid, (prod_client, cons_client))
            raise
    return Connection(
        uid=uid,
        prod=prod,
        cons=cons,
        prod_listeners=producer.listeners,
        cons_listeners=consumer.listeners,
        secure=producer.offer is not None and consumer.offer is not None,
    )


def release(uid: str, addresses: Sequence[str], credentials: Credentials | None) -> None:
    """End a session on every server named. Raises the first error after all have been asked."""
    failures: list[PeerError] = []
    for address in addresses:
        with ControlClient(address, credentials) as client:
            try:
                client.release(uid)
            except (TunnelError, PeerLostError) as error:
                failures.append(error)
    if failures:
        raise failures[0]


def _release(uid: str, clients: Sequence[ControlClient]) -> None:
    """Let go of what a failed connect may have opened; a server that is gone has let go already."""
    for client in clients:
        try:
            client.release(uid)
        except (TunnelError, PeerLostError) as error:
            logger.debug("release after failure: %s", error)
