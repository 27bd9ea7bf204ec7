"""The user client (S2UC): opens a session on both control servers, joins them, and releases it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ministream import log
from ministream.errors import PeerError, PeerLostError, TunnelError
from ministream.tunnel.control_client import Access, ControlClient, UnimplementedError
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.joint import Joint, Reopening

_LOG = log.get(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A session open on both sides. The consumer connects to `cons_listeners`.

    `limit` says which rate limits hold; None where none was asked for.
    """

    uid: str
    prod: str
    cons: str
    prod_listeners: tuple[str, ...]
    cons_listeners: tuple[str, ...]
    secure: bool
    limit: str | None = None


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
    wait_s: float = 0.0,
    probe: bool = False,
    access: Access | None = None,
) -> Connection:
    """Open one session through both servers, PROD first, so that bytes can flow; on failure nothing stays open.

    `targets` are the producer's data addresses; none: those that its own control server knows. `rate` is in kB/s,
    0 for no limit. `wait_s` is how long to wait for servers that are not there yet. `access` stands in for the
    credentials, for instance with a token. Raises AccessError, PeerLostError or TunnelError; also when interrupted,
    nothing stays open.
    """
    uid = uid or str(uuid.uuid4())
    access = access or Access.of(credentials)
    with (
        ControlClient(prod, access) as prod_client,
        ControlClient(cons, access) as cons_client,
        released_on_failure(uid, (prod_client, cons_client)),
    ):
        come_by = time.monotonic() + wait_s
        for server in (prod_client, cons_client):
            server.wait_for(come_by - time.monotonic())
        joint = Joint(uid, prod_client, cons_client, num_conn=num_conn, rate=rate, targets=targets)
        joint.open(timeout_s)
        if probe:
            prod_client.probe(joint.producer.listeners)
            cons_client.probe(joint.consumer.listeners)
        limit = _limit_of(uid, (prod_client, cons_client)) if rate else None
    return replace(_connection(joint, prod, cons), limit=limit)


@contextmanager
def session(
    prod: str,
    cons: str,
    credentials: Credentials | None,
    num_conn: int = 1,
    *,
    targets: Sequence[str] = (),
    rate: int = 0,
    uid: str | None = None,
    timeout_s: float = 60.0,
    wait_s: float = 0.0,
    access: Access | None = None,
) -> Iterator[Connection]:
    """`connect` for the length of a block. A server that restarts meanwhile gets the session again; at the end,
    normal or not, the session is released.
    """
    uid = uid or str(uuid.uuid4())
    access = access or Access.of(credentials)
    with ExitStack() as stack:
        clients = [stack.enter_context(ControlClient(address, access)) for address in (prod, cons)]
        stack.callback(_let_go, uid, clients)
        come_by = time.monotonic() + wait_s
        for server in clients:
            server.wait_for(come_by - time.monotonic())
        joint = Joint(uid, *clients, num_conn=num_conn, rate=rate, targets=targets)
        joint.open(timeout_s)
        stack.enter_context(Reopening(joint))
        yield _connection(joint, prod, cons)


def release(uid: str, addresses: Sequence[str], access: Access) -> None:
    """End a session on every server named. Raises the first error after all have been asked."""
    failures: list[PeerError] = []
    for address in addresses:
        with ControlClient(address, access) as client:
            try:
                client.release(uid)
            except (TunnelError, PeerLostError) as error:
                failures.append(error)
    if failures:
        raise failures[0]


@contextmanager
def released_on_failure(uid: str, clients: Sequence[ControlClient]) -> Iterator[None]:
    """Release what a block has opened if it fails or is interrupted."""
    try:
        yield
    except BaseException:
        _let_go(uid, clients)
        raise


def _connection(joint: Joint, prod: str, cons: str) -> Connection:
    return Connection(
        uid=joint.uid,
        prod=prod,
        cons=cons,
        prod_listeners=joint.producer.listeners,
        cons_listeners=joint.consumer.listeners,
        secure=joint.producer.offer is not None and joint.consumer.offer is not None,
    )


def _limit_of(uid: str, clients: Sequence[ControlClient]) -> str:
    """The rate limits in force, as the servers tell them."""
    found = []
    for client in clients:
        try:
            rates = [one.get("rate_kbytes_s", 0) for one in client.sessions() if one["uid"] == uid]
            text = f"at most {rates[0]} kB/s" if any(rates) else "no rate limit (its policy does not obey --rate)"
        except UnimplementedError:
            text = "does not tell its rate limit"
        found.append(f"{client.endpoint}: {text}")
    return ", ".join(found)


def _let_go(uid: str, clients: Sequence[ControlClient]) -> None:
    """A server that has stopped, or that never admitted us, holds nothing of ours."""
    for client in clients:
        try:
            client.release(uid)
        except (TunnelError, PeerLostError) as error:
            _LOG.debug("release: %s", error)
