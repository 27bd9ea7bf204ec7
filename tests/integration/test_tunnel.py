"""Both control servers, the client and the relays together: real sockets, real processes, TLS between them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ministream.errors import AccessError, ConfigError, PeerLostError, TunnelError
from ministream.tunnel import client, credentials
from ministream.tunnel.control import ControlServer
from ministream.tunnel.credentials import Credentials

PAYLOAD = os.urandom(1 << 20) * 6


class Echo:
    """A producer's data socket: sends back what it gets, ends when the caller ends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def producer() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    directory = tmp_path_factory.mktemp("credentials") / "d"
    credentials.create_authority(directory, name="test-ca", days=10)
    credentials.issue(directory, name="gw", usage="server", hosts=["127.0.0.1", "localhost"], days=1, out=directory)
    credentials.issue(directory, name="operator", usage="client", hosts=[], days=1, out=directory)
    return Credentials.load(directory)


@pytest.fixture
def gateways(secrets: Credentials, producer: Echo) -> Iterator[tuple[ControlServer, ControlServer]]:
    prod = ControlServer(side="PROD", credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", credentials=secrets) as cons:
        yield prod, cons


def dial(listener: str) -> socket.socket:
    host, _, port = listener.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def exchange(listener: str, data: bytes) -> bytes:
    """Send everything, end our direction, return everything that comes back."""
    with dial(listener) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        received = bytearray()
        while chunk := sock.recv(1 << 18):
            received += chunk
        sender.join()
    return bytes(received)


def relays() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def eventually(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_bytes_cross_both_relays_over_tls(
    gateways: tuple[ControlServer, ControlServer], producer: Echo, secrets: Credentials
) -> None:
    prod, cons = gateways
    opened = client.connect(prod.address, cons.address, secrets)
    assert opened.secure
    info = cons.wait_session(5)
    assert info.listeners == opened.cons_listeners
    assert (info.uid, info.owner, info.state, info.kind) == (opened.uid, "operator", "active", "relay")
    assert exchange(info.listeners[0], PAYLOAD) == PAYLOAD
    for server in gateways:
        eventually(lambda server=server: server.sessions()[0].traffic.outward == len(PAYLOAD))
        assert server.sessions()[0].cipher.startswith("TLSv1.3 TLS_")
        assert server.sessions()[0].targets == (opened.prod_listeners if server is cons else (producer.address,))


def test_nothing_flows_when_one_relay_has_stopped(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    prod, cons = gateways
    opened = client.connect(prod.address, cons.address, secrets)
    with dial(opened.cons_listeners[0]) as sock:
        sock.sendall(b"before")
        assert sock.recv(6) == b"before"
        prod.close()
        sock.settimeout(10)
        with pytest.raises(ConnectionError):
            assert sock.recv(1), "the connection must not end as if all had arrived"
            raise AssertionError("data without a producer-side relay")


def test_nobody_reaches_the_producer_without_the_sessions_certificate(
    gateways: tuple[ControlServer, ControlServer], producer: Echo, secrets: Credentials
) -> None:
    opened = client.connect(gateways[0].address, gateways[1].address, secrets)
    with dial(opened.prod_listeners[0]) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionError):
            while sock.recv(100):
                pass
            raise ConnectionError
    eventually(lambda: gateways[0].sessions()[0].traffic.refused == 1)
    assert producer.accepted == 0


def test_release_gives_ports_back_and_leaves_no_process(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    prod, cons = gateways
    before = len(relays())
    opened = client.connect(prod.address, cons.address, secrets, num_conn=3)
    assert len(set(opened.cons_listeners)) == len(set(opened.prod_listeners)) == 3
    assert len(relays()) > before
    sock = dial(opened.cons_listeners[0])
    client.release(opened.uid, (prod.address, cons.address), client.Access.of(secrets))
    client.release(opened.uid, (prod.address, cons.address), client.Access.of(secrets))
    assert len(relays()) == before
    assert prod.sessions() == cons.sessions() == []
    sock.settimeout(5)
    with sock, pytest.raises(ConnectionError):
        if sock.recv(1) == b"":
            raise ConnectionError
    with pytest.raises(ConnectionRefusedError):
        dial(opened.prod_listeners[0])


def test_a_client_without_certificate_is_refused(gateways: tuple[ControlServer, ControlServer]) -> None:
    with pytest.raises(PeerLostError):
        client.connect(gateways[0].address, gateways[1].address, None, timeout_s=5)


def test_a_client_of_another_authority_is_refused(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    credentials.create_authority(other, name="other", days=10)
    credentials.issue(other, name="operator", usage="client", hosts=[], days=1, out=other)
    # It trusts our server, so that it is the server who must refuse.
    mixed = Credentials(
        directory=other, ca=secrets.ca, server_pair=None, client_pair=Credentials.load(other).client_pair
    )
    with pytest.raises(PeerLostError):
        client.connect(gateways[0].address, gateways[1].address, mixed, timeout_s=5)


def test_a_failed_connect_lets_go_of_what_it_opened(secrets: Credentials, producer: Echo) -> None:
    with ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod:
        free = socket.create_server(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        with pytest.raises(PeerLostError, match=nobody):
            client.connect(prod.address, nobody, secrets, timeout_s=5)
        assert prod.sessions() == []


def test_only_the_jobs_own_address_is_a_target(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    with pytest.raises(AccessError, match=r"127\.0\.0\.1:22 is not in this server's policy"):
        client.connect(gateways[0].address, gateways[1].address, secrets, targets=["127.0.0.1:22"])
    assert relays() == []


def test_the_second_server_on_an_address_does_not_start(gateways: tuple[ControlServer, ControlServer]) -> None:
    second = ControlServer(side="PROD", address=gateways[0].address, insecure=True)
    with pytest.raises(TunnelError, match="cannot be had"):
        second.start()


def test_waiting_for_a_session_ends(gateways: tuple[ControlServer, ControlServer]) -> None:
    with pytest.raises(PeerLostError, match="no tunnel session"):
        gateways[1].wait_session(0.2)


def test_insecure_is_for_loopback_only() -> None:
    with pytest.raises(ConfigError, match="loopback"):
        ControlServer(side=None, address="0.0.0.0:0", insecure=True)
    with pytest.raises(ConfigError, match="--credentials"):
        ControlServer(side=None)


def test_insecure_servers_carry_bytes_too(producer: Echo) -> None:
    prod = ControlServer(side="PROD", insecure=True, targets=[producer.address])
    with prod, ControlServer(side="CONS", insecure=True) as cons:
        opened = client.connect(prod.address, cons.address, None)
        assert exchange(opened.cons_listeners[0], PAYLOAD) == PAYLOAD
