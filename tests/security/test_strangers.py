"""Callers that never prove who they are keep nobody out, on control and data ports alike."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pwd
import re
import resource
import selectors
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ministream import log
from ministream.tunnel import client
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.proxy import CALLERS_PER_ADDRESS, _log_budget
from ministream.tunnel.strangers import Strangers
from tests.integration.tunnel_ends import children, dial, echoing, is_cut, make_credentials, need, ping
from tests.waiting import HANG_S, eventually

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


@contextlib.contextmanager
def working_relays(secrets: Credentials) -> Iterator[list[psutil.Process]]:
    """The relay processes of both sides of a session that carries."""
    with (
        echoing() as producer,
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
    ):
        assert ping(opened.cons_listeners[0]) == b"ping"
        relays = [process for process in children() if any("relay" in word for word in process.cmdline())]
        assert relays
        yield relays


@pytest.mark.parametrize(("kind", "count"), [("relay", MANY), ("haproxy", 100), ("nginx", 100), ("stunnel", 100)])
def test_idle_strangers_on_the_producers_data_port_do_not_keep_the_session_out(
    secrets: Credentials, kind: str, count: int
) -> None:
    need(kind)
    with (
        echoing() as producer,
        ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", kind=kind, credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
        idle(opened.prod_listeners[0], count) as strangers,
    ):
        assert ping(opened.cons_listeners[0]) == b"ping"
        assert all(is_cut(sock) for sock in strangers), "each of them is gone within the handshake's time"
        assert producer.accepted == 1


def test_strangers_fill_no_log_and_do_not_silence_it(
    secrets: Credentials, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lines are limited per minute; the next minute begins with how many were left out."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(log.get("ministream"), "propagate", True)
    minutes = [0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return 60.0 * minutes[0]

    monkeypatch.setattr(_log_budget, "time", Clock)
    monkeypatch.setattr(_log_budget, "LINES_PER_MINUTE", 5)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if "connection ended: " in record.getMessage()]

    def disturb(listener: str, count: int) -> None:
        for _ in range(count):
            with dial(listener) as stranger:
                stranger.sendall(b"no TLS at all\r\n\r\n")
                assert is_cut(stranger)

    with (
        echoing() as producer,
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
    ):
        disturb(opened.prod_listeners[0], 12)
        eventually(lambda: len(lines()) == 5)
        minutes[0] = 1
        eventually(lambda: disturb(opened.prod_listeners[0], 1) or "more lines in that minute" in caplog.text)
        eventually(lambda: len(lines()) > 5)
        assert ping(opened.cons_listeners[0]) == b"ping"


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


@pytest.mark.parametrize(
    ("kind", "text", "limit"),
    [("haproxy", "_GLOBAL", "timeout client 10s"), ("nginx", "_ACCEPTED_TLS", "ssl_handshake_timeout 5s")],
)
def test_one_address_does_not_take_every_connection(
    secrets: Credentials, monkeypatch: pytest.MonkeyPatch, kind: str, text: str, limit: str
) -> None:
    """However long a handshake may take."""
    need(kind)
    module = importlib.import_module(f"ministream.tunnel.proxy.{kind}")
    configured = getattr(module, text)
    assert limit in configured
    monkeypatch.setattr(module, text, configured.replace(limit, limit.rpartition(" ")[0] + " 1h"))
    with (
        echoing() as producer,
        ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", kind=kind, credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
        contextlib.ExitStack() as stack,
    ):
        waiting = stack.enter_context(selectors.DefaultSelector())
        try:
            for _ in range(CALLERS_PER_ADDRESS + 1):
                waiting.register(stack.enter_context(dial(opened.prod_listeners[0])), selectors.EVENT_READ)
        except ConnectionResetError:
            return  # the last one, or it is cut off later, whichever of them a worker accepts last
        assert waiting.select(HANG_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="has no privileges to give up")
def test_a_relay_has_no_privileges(secrets: Credentials) -> None:
    with working_relays(secrets) as relays:
        for process in relays:
            assert process.username() == "nobody"
            assert set(process.uids()) == {pwd.getpwnam("nobody").pw_uid}


def test_a_relay_that_starts_after_its_server_has_ended_ends_at_once() -> None:
    """The kernel tells a process of its parent's end only if that comes later."""
    module = "ministream.tunnel.proxy._relay_worker"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = subprocess.run(
                [sys.executable, "-P", "-m", module, str(gone.pid)], stdin=theirs, check=False, timeout=60
            )
    assert done.returncode == 1


def test_a_relay_process_leaves_no_core_dump(secrets: Credentials) -> None:
    with working_relays(secrets) as relays:
        for process in relays:
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits), process.cmdline()


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
