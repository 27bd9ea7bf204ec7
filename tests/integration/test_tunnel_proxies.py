"""stunnel, HAProxy and nginx as data servers, and what they can do together with the built-in relay."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from ministream import registry
from ministream.errors import ConfigError, TunnelError
from ministream.tunnel import certificates, client
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy, PolicySection
from ministream.tunnel.proxy import haproxy
from ministream.tunnel.role import Role
from ministream.tunnel.session_manager import PROXIES
from tests.integration.tunnel_ends import (
    PROGRAMS,
    Echo,
    children,
    dial,
    echoed,
    echoing,
    exchange,
    is_cut,
    need,
    ping,
)
from tests.waiting import HANG_S, eventually

PAYLOAD = os.urandom(1 << 20) * 3


@pytest.fixture(params=registry.names(PROXIES))
def kind(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


def test_every_data_server_is_tested_here() -> None:
    assert set(registry.names(PROXIES)) == set(PROGRAMS)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ConfigError, match="haproxy, nginx, relay, stunnel"):
        ControlServer(side=None, kind="Haproxy2", insecure=True)


def test_both_gateways_over_tls(kind: str, secrets: Credentials, producer: Echo) -> None:
    prod = ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=kind, credentials=secrets) as cons:
        opened = client.connect(prod.address, cons.address, secrets, 2, probe=True)
        assert opened.secure
        for listener in opened.cons_listeners:
            # nginx cannot end one direction of a TLS connection by itself, and stunnel 5.68 then drops the end of
            # the answer now and again (once in 150 times).
            assert exchange(listener, PAYLOAD, end_first=kind not in {"nginx", "stunnel"}) == PAYLOAD
        for server in (prod, cons):
            (found,) = server.sessions()
            assert (found.kind, found.secure) == (kind, True)
            assert str(found.cipher).startswith("TLSv1.3")
        client.release(opened.uid, (prod.address, cons.address), Access.of(secrets))
        assert children() == []
        for listener in (*opened.prod_listeners, *opened.cons_listeners):
            with pytest.raises(ConnectionRefusedError):
                dial(listener)


def test_bytes_are_counted_while_a_connection_is_open_and_when_it_has_ended(
    kind: str, secrets: Credentials, producer: Echo
) -> None:
    prod = ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=kind, credentials=secrets) as cons:
        opened = client.connect(prod.address, cons.address, secrets)
        size = 200_000
        with dial(opened.cons_listeners[0]) as sock:
            assert echoed(sock, bytes(size)) == bytes(size)
            for server in (prod, cons):
                # Where TCP does the counting, a byte counts once it is acknowledged, and TLS's own count too.
                eventually(lambda server=server: size <= min(_carried(server)[1:]))
                assert max(_carried(server)[1:]) < 1.05 * size
                assert _carried(server)[0] == 1
        for server in (prod, cons):
            eventually(lambda server=server: _carried(server) == (0, size, size))


def _carried(server: ControlServer) -> tuple[int, ...]:
    """Connections open, bytes inward, bytes outward."""
    (found,) = server.sessions()
    return found.traffic.connections, found.traffic.inward or 0, found.traffic.outward or 0


@pytest.mark.parametrize(
    ("prod_kind", "cons_kind"),
    [("relay", "haproxy"), ("haproxy", "relay"), ("relay", "nginx"), ("nginx", "relay"), ("haproxy", "nginx")],
)
def test_data_servers_with_certificates_mix(
    prod_kind: str, cons_kind: str, secrets: Credentials, producer: Echo
) -> None:
    need(prod_kind, cons_kind)
    prod = ControlServer(side="PROD", kind=prod_kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=cons_kind, credentials=secrets) as cons:
        opened = client.connect(prod.address, cons.address, secrets)
        half_close = "nginx" not in (prod_kind, cons_kind)
        assert exchange(opened.cons_listeners[0], PAYLOAD, end_first=half_close) == PAYLOAD


def test_data_servers_that_do_not_understand_each_other_are_refused(secrets: Credentials, producer: Echo) -> None:
    need("stunnel")
    prod = ControlServer(side="PROD", kind="stunnel", credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", credentials=secrets) as cons:
        with pytest.raises(TunnelError, match="stunnel needs the other side's key"):
            client.connect(prod.address, cons.address, secrets)
        assert prod.sessions() == cons.sessions() == []
        assert children() == []


@pytest.mark.parametrize("plain_kind", ["relay", "haproxy", "nginx"])
def test_one_gateway_with_plain_bytes(plain_kind: str, producer: Echo) -> None:
    need(plain_kind)
    policy = Policy(PolicySection(targets=("127.0.0.1:*",)))
    with (
        ControlServer(side=None, kind=plain_kind, insecure=True, policy=policy) as server,
        ControlClient(server.address, Access()) as control,
    ):
        opened = control.open("s", "PROD", num_conn=2, rate=0, targets=[producer.address], timeout_s=10)
        control.update("s", "PROD", [], None)
        for listener in opened.listeners:
            assert exchange(listener, PAYLOAD) == PAYLOAD
        with echoing() as other:
            control.update("s", "PROD", [other.address], None)
            assert ping(opened.listeners[1]) == b"ping"
            assert other.accepted == 1


@pytest.mark.parametrize("silent", ["producer", "consumer"])
def test_a_half_closed_connection_whose_peer_is_silent_ends(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    """HAProxy would keep it for 24 days, the limit of an idle connection. Here its hour is a second."""
    need("haproxy")
    monkeypatch.setattr(haproxy, "_GLOBAL", haproxy._GLOBAL.replace("-fin 1h", "-fin 1s"))
    policy = Policy(PolicySection(targets=("127.0.0.1:*",)))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ControlServer(side=None, kind="haproxy", insecure=True, policy=policy) as server,
        ControlClient(server.address, Access()) as control,
    ):
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        opened = control.open("s", "PROD", num_conn=1, rate=0, targets=[target], timeout_s=10)
        control.update("s", "PROD", [], None)
        consumer = dial(opened.listeners[0])
        listener.settimeout(HANG_S)
        producer, _ = listener.accept()
        producer.settimeout(HANG_S)
        with consumer, producer:
            # the one that is not silent has nothing more to say, and hears the end of the other's direction
            other = consumer if silent == "producer" else producer
            other.shutdown(socket.SHUT_WR)
            assert is_cut(other)


def test_nobody_reaches_the_producer_without_the_sessions_secret(
    kind: str, secrets: Credentials, producer: Echo
) -> None:
    prod = ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=kind, credentials=secrets) as cons:
        opened = client.connect(prod.address, cons.address, secrets)
        with dial(opened.prod_listeners[0]) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while not is_cut(sock):
                pass
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
        # A client certificate of the deployment's own authority is not enough either.
        anybody.load_cert_chain(secrets.directory / "client.crt", secrets.directory / "client.key")
        with (
            dial(opened.prod_listeners[0]) as raw,
            pytest.raises((ssl.SSLError, ConnectionError, EOFError)),
            anybody.wrap_socket(raw) as sock,
        ):
            sock.sendall(b"hello")
            if sock.recv(1) == b"":
                raise EOFError
        assert producer.accepted == 0
        assert ping(opened.cons_listeners[0]) == b"ping"


class Impostor:
    """A TLS server with some certificate that stands where the producer's gateway should."""

    def __init__(self, directory: Path) -> None:
        pair = certificates.make_session_pair(1)
        (directory / "pair.pem").write_bytes(pair.certificate + pair.key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "pair.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = b""
        self.tried = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            with raw, contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as sock:
                sock.settimeout(3)
                self.received += sock.recv(100)
            self.tried.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_an_impostor_gets_no_byte_from_the_consumers_side(kind: str, secrets: Credentials, tmp_path: Path) -> None:
    impostor = Impostor(tmp_path)
    # The offer that the consumer's gateway is given is another's, as if the impostor had taken over the address.
    offer = b"psk:" + b"ab" * 32 if kind == "stunnel" else certificates.make_session_pair(1).certificate
    with (
        ControlServer(side="CONS", kind=kind, credentials=secrets) as cons,
        ControlClient(cons.address, Access.of(secrets)) as control,
    ):
        opened = control.open("s", "CONS", num_conn=1, rate=0, targets=[], timeout_s=10)
        control.update("s", "CONS", [impostor.address], offer)
        with dial(opened.listeners[0]) as sock:
            sock.sendall(b"secret projections")
            assert impostor.tried.wait(HANG_S)
            # HAProxy tries again for some seconds before it gives up.
            assert is_cut(sock)
    assert impostor.received == b""
    impostor.close()


def test_a_program_that_dies_ends_its_session_loudly(kind: str, secrets: Credentials, producer: Echo) -> None:
    prod = ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=kind, credentials=secrets) as cons:
        opened = client.connect(prod.address, cons.address, secrets)

        def over() -> bool:
            """Kill what runs; the relay is started again a few times."""
            for process in children():
                # A worker may have followed its master already.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            return prod.sessions() == cons.sessions() == []

        eventually(over)
        eventually(lambda: children() == [])
        with pytest.raises(ConnectionRefusedError):
            dial(opened.prod_listeners[0])


def test_secrets_are_in_no_command_line_environment_or_file(kind: str, secrets: Credentials, producer: Echo) -> None:
    prod = ControlServer(side="PROD", kind=kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=kind, credentials=secrets) as cons:
        opened = client.connect(prod.address, cons.address, secrets)
        assert ping(opened.cons_listeners[0]) == b"ping"
        for process in children():
            command = " ".join(process.cmdline())
            told = command + Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
            assert opened.uid not in told
            assert "PRIVATE" not in told
            assert "psk" not in told.lower()
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = str(descriptor.readlink())
                    assert not target.startswith(("/tmp", "/dev/shm", "/run", "/var")), target


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
@pytest.mark.parametrize("program_kind", ["haproxy", "nginx", "stunnel"])
def test_programs_run_without_privileges(program_kind: str, secrets: Credentials, producer: Echo) -> None:
    need(program_kind)
    prod = ControlServer(side="PROD", kind=program_kind, credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind=program_kind, credentials=secrets) as cons:
        client.connect(prod.address, cons.address, secrets)
        assert children()
        assert all(0 not in process.uids() for process in children())


def test_a_program_that_is_not_there_is_an_error_with_the_remedy(
    secrets: Credentials, producer: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ministream.tunnel.proxy._program._SBIN", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    prod = ControlServer(side="PROD", kind="haproxy", credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", kind="haproxy", credentials=secrets) as cons:
        with pytest.raises(Exception, match="--with-proxies"):
            client.connect(prod.address, cons.address, secrets)
        assert prod.sessions() == []


def test_what_a_program_says_when_it_fails_is_reported(secrets: Credentials) -> None:
    need("haproxy")
    version = subprocess.run(["/usr/sbin/haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    assert "HAProxy" in version
    from ministream.tunnel.proxy import haproxy

    class Broken(haproxy.Proxy):
        def configuration(self, targets: object, *, secure: bool) -> str:
            return "nonsense here\n"

    import asyncio

    from ministream.tunnel.proxy import Setup

    listener = socket.create_server(("127.0.0.1", 0))
    setup = Setup(uid="s", listeners=[listener], side=Role.PROD, rate_kbytes_s=0, on_failure=lambda _: None, options={})

    async def run() -> None:
        proxy = Broken(setup)
        with pytest.raises(TunnelError, match="nonsense"):
            await proxy.forward([((2, ("127.0.0.1", 9)),)], None)
        await proxy.close()

    asyncio.run(run())
    assert children() == []
