"""Callers that never prove who they are keep nobody out, on control and data ports alike."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ministream.tunnel import client
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.strangers import Strangers
from tests.integration.tunnel_ends import children, dial, echoing, is_cut, make_credentials, ping

MANY = 500


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("credentials") / "d")


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def idle(listener: str, count: int = MANY) -> Iterator[list[socket.socket]]:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(dial(listener)) for _ in range(count)]


def test_idle_strangers_on_the_producers_data_port_do_not_keep_the_session_out(secrets: Credentials) -> None:
    with (
        echoing() as producer,
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
        idle(opened.prod_listeners[0]) as strangers,
    ):
        assert ping(opened.cons_listeners[0]) == b"ping"
        assert all(is_cut(sock) for sock in strangers), "each of them is gone within the handshake's time"
        assert producer.accepted == 1


@pytest.mark.parametrize("allow_token", [False, True])
def test_idle_strangers_on_the_control_port_keep_nobody_out(tmp_path: Path, allow_token: bool) -> None:
    secrets = make_credentials(tmp_path / "d")
    if allow_token:
        (tmp_path / "d" / "tokens").touch(mode=0o600)
    with (
        ControlServer(side="PROD", credentials=secrets, allow_token=allow_token) as server,
        idle(server.address),
        ControlClient(server.address, Access.of(secrets)) as control,
    ):
        assert control.sessions() == []


def test_a_relay_process_leaves_no_core_dump(secrets: Credentials) -> None:
    with (
        echoing() as producer,
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
    ):
        assert ping(opened.cons_listeners[0]) == b"ping"
        relays = [process for process in children() if any("relay" in word for word in process.cmdline())]
        assert relays
        for process in relays:
            assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0), process.cmdline()


def test_tls_without_an_authenticated_call_ends(secrets: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where tokens are taken: whoever shows none in time is a stranger."""
    monkeypatch.setattr("ministream.tunnel.tls_listener._STRANGER_S", 1.0)
    context = ssl.create_default_context(cadata=secrets.ca.decode())
    (secrets.directory / "tokens").touch(mode=0o600)
    with (
        ControlServer(side="PROD", credentials=secrets, allow_token=True) as server,
        dial(server.address) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
    ):
        sock.settimeout(20)
        with contextlib.suppress(OSError):
            while sock.recv(1000):
                pass


def test_one_identity_does_not_take_every_connection(secrets: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ministream.tunnel.tls_listener._MAX_PER_IDENTITY", 2)
    context = ssl.create_default_context(cadata=secrets.ca.decode())
    context.load_cert_chain(secrets.directory / "client.crt", secrets.directory / "client.key")
    with ControlServer(side="PROD", credentials=secrets) as server, contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(context.wrap_socket(dial(server.address), server_hostname="127.0.0.1"))
            for _ in range(3)
        ]
        for sock in held:
            # the server's settings frame comes once the connection is served
            sock.settimeout(20)
        assert [bool(_received(sock)) for sock in held] == [True, True, False]


def test_an_authenticated_connection_ends_when_idle(secrets: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ministream.tunnel.tls_listener._IDLE_S", 1.0)
    context = ssl.create_default_context(cadata=secrets.ca.decode())
    context.load_cert_chain(secrets.directory / "client.crt", secrets.directory / "client.key")
    with (
        ControlServer(side="PROD", credentials=secrets) as server,
        context.wrap_socket(dial(server.address), server_hostname="127.0.0.1") as sock,
    ):
        sock.settimeout(20)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while sock.recv(1000):
                pass


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(100)
    except OSError:
        return b""


def test_a_newcomer_takes_the_place_of_the_oldest_of_the_address_that_holds_most() -> None:
    dropped: list[str] = []
    strangers = Strangers(places=4, per_address=3)
    for key in ("a1", "b1", "a2", "a3"):
        strangers.enter(key, key[0], lambda key=key: dropped.append(key))
    strangers.enter("a4", "a", lambda: dropped.append("a4"))
    assert dropped == ["a1"]
    strangers.enter("c1", "c", lambda: dropped.append("c1"))
    assert dropped == ["a1", "a2"]
    strangers.leave("a3")
    strangers.leave("a2")
    assert len(strangers) == 3
    assert strangers.dropped == 2
