"""Stock SciStream 1.2: its user client against our servers, its control server against our client.

The wire as the stock programs use it is spoken here by bare gRPC, so these tests always run. Where the programs
themselves are installed (MINISTREAM_STOCK names a folder with `s2uc` and `s2cs`), they run too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ministream.errors import AccessError, PeerLostError, TunnelError
from ministream.tunnel import client, credentials, messages
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy, PolicySection
from tests.integration.stock_server import StockServer
from tests.integration.tunnel_ends import Echo, ping
from tests.ports import free_ports
from tests.waiting import HANG_S, eventually

UID = "4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3"
# The scope under which stock s2uc looks for its token when it talks to this machine.
SCOPE = "c42c0dac-0a52-408e-a04f-5d31bfe0aef8"


@pytest.fixture(scope="module")
def token(secrets: Credentials) -> str:
    return credentials.add_token(secrets.directory, "stock", 1)


@pytest.fixture
def gateways(secrets: Credentials, token: str) -> Iterator[tuple[ControlServer, ControlServer]]:
    """As a site sets them up for stock clients: tokens, plain data, targets on this machine."""
    assert token
    policy = Policy(PolicySection(targets=("127.0.0.1:*",), plain_data=True))
    prod, cons = (ControlServer(side=None, credentials=secrets, allow_token=True, policy=policy) for _ in range(2))
    with prod, cons:
        yield prod, cons


class Stock:
    """What stock s2uc does on the wire: server-authenticated TLS and the raw token as metadata."""

    def __init__(self, address: str, ca: bytes, token: str) -> None:
        self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca))
        self._metadata = (("authorization", token),)

    def call(self, name: str, timeout_s: float = HANG_S, **fields: Any) -> Any:
        sent, back = messages.METHODS[name]
        method = self._channel.unary_unary(
            f"/scistream.Control/{name}",
            request_serializer=messages.message_class(sent).SerializeToString,
            response_deserializer=messages.message_class(back).FromString,
        )
        return method(messages.message_class(sent)(**fields), metadata=self._metadata, timeout=timeout_s)

    def request(self, uid: str, role: str, num_conn: int, receivers: list[str]) -> Any:
        """req in a thread, hello half a second later, always as PROD: also on the consumer's side."""
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(self.call, "req", uid=uid, role=role, num_conn=num_conn, rate=10000)
            time.sleep(0.5)
            answer = self.call("hello", uid=uid, role="PROD", prod_listeners=receivers)
            assert answer.message == "Sending Prod listeners..."
            assert list(answer.listeners) == []
            return waiting.result()

    def close(self) -> None:
        self._channel.close()


def test_a_stock_client_opens_and_releases(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, token: str, producer: Echo
) -> None:
    prod, cons = (Stock(server.address, secrets.ca, token) for server in gateways)
    inbound = prod.request(UID, "PROD", 5, [producer.address])
    assert len(inbound.listeners) == 5
    assert list(inbound.prod_listeners) == [producer.address]
    mapped = prod.call("update", uid=UID, role="PROD", remote_listeners=inbound.prod_listeners)
    assert list(mapped.prod_listeners) == [producer.address] * 5
    assert list(mapped.listeners) == list(inbound.listeners)
    outbound = cons.request(UID, "CONS", 5, ["localhost:5074", "localhost:5075"])
    cons.call("update", uid=UID, role="CONS", remote_listeners=inbound.listeners)
    assert [ping(listener) for listener in outbound.listeners] == [b"ping"] * 5
    (info,) = gateways[1].sessions()
    assert (info.owner, info.role, info.secure) == ("token:stock", "CONS", False)
    for stock in (prod, cons, prod):
        stock.call("release", uid=UID)
    assert gateways[0].sessions() == gateways[1].sessions() == []
    prod.close()
    cons.close()


def test_a_stock_client_is_told_why_it_is_refused(secrets: Credentials, producer: Echo) -> None:
    with ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as server:
        stock = Stock(server.address, secrets.ca, "INVALID_TOKEN")
        with pytest.raises(grpc.RpcError) as caught:
            stock.call("req", uid=UID, role="PROD", num_conn=1, rate=10000)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "--allow-token" in caught.value.details()
        assert server.sessions() == []
        stock.close()


@pytest.mark.parametrize("wrong", ["INVALID_TOKEN", "", "x"])
def test_invalid_token_means_nobody(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, wrong: str
) -> None:
    stock = Stock(gateways[0].address, secrets.ca, wrong)
    for method in ("req", "hello", "update", "release"):
        with pytest.raises(grpc.RpcError) as caught:
            stock.call(method, uid=UID)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    stock.close()


def test_on_an_insecure_server_anybody_may_come_over_tls_too(secrets: Credentials, producer: Echo) -> None:
    server = ControlServer(side="PROD", credentials=secrets, insecure=True, targets=[producer.address])
    with server:
        stock = Stock(server.address, secrets.ca, "INVALID_TOKEN")
        answer = stock.request(UID, "PROD", 1, [producer.address])
        stock.call("update", uid=UID, role="PROD", remote_listeners=[])
        assert ping(answer.listeners[0]) == b"ping"
        stock.close()


def test_a_tokens_session_is_not_a_certificates_session(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, token: str, producer: Echo
) -> None:
    stock = Stock(gateways[0].address, secrets.ca, token)
    stock.request(UID, "PROD", 1, [producer.address])
    with ControlClient(gateways[0].address, Access.of(secrets)) as control:
        assert control.sessions() == []
        with pytest.raises(AccessError):
            control.release(UID)
    stock.close()


# Bytes on the wire as stock s2uc 1.2 sends them: field by field, whatever our own library makes of its messages.
STOCK_MESSAGES = {
    "req": "0a24" + UID.encode().hex() + "1204" + b"PROD".hex() + "1801" + "20904e",
    "hello": "0a24" + UID.encode().hex() + "12{length}{target}" + "1a04" + b"PROD".hex(),
    "update": "0a24" + UID.encode().hex() + "12{length}{target}" + "1a04" + b"PROD".hex(),
    "release": "0a24" + UID.encode().hex(),
}


def test_the_bytes_that_stock_s2uc_sends(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, token: str, producer: Echo
) -> None:
    target = producer.address.encode()
    words = {
        name: bytes.fromhex(text.format(length=f"{len(target):02x}", target=target.hex()))
        for name, text in STOCK_MESSAGES.items()
    }
    metadata = (("authorization", token),)
    with grpc.secure_channel(gateways[0].address, grpc.ssl_channel_credentials(secrets.ca)) as channel:
        call = {name: channel.unary_unary(f"/scistream.Control/{name}", bytes, bytes) for name in words}
        waiting = call["req"].future(words["req"], metadata=metadata, timeout=20)
        time.sleep(0.5)
        # AppResponse: field 1 is the message, field 2 would be listeners.
        assert call["hello"](words["hello"], metadata=metadata, timeout=5) == b"\x0a\x19Sending Prod listeners..."
        answer = waiting.result()
        # Response: field 1 are the listeners, field 2 the producer's.
        length = answer[1]
        assert answer[0] == 0x0A
        listener = answer[2 : 2 + length].decode()
        assert answer[2 + length :] == b"\x12" + bytes([len(target)]) + target
        assert call["update"](words["update"], metadata=metadata, timeout=5) == answer
        assert ping(listener) == b"ping"
        assert call["release"](words["release"], metadata=metadata, timeout=5) == b""
    assert gateways[0].sessions() == []


@pytest.fixture
def stock_pair(secrets: Credentials) -> Iterator[tuple[StockServer, StockServer]]:
    pair = secrets.server
    with StockServer(pair.certificate, pair.key) as prod, StockServer(pair.certificate, pair.key) as cons:
        yield prod, cons


def test_our_client_on_the_wire_of_stock_servers(
    stock_pair: tuple[StockServer, StockServer], secrets: Credentials, token: str, producer: Echo
) -> None:
    prod, cons = stock_pair
    login = Access(ca=secrets.ca, token=token)
    opened = client.connect(prod.address, cons.address, None, 2, targets=[producer.address], access=login, probe=True)
    assert not opened.secure
    assert [ping(listener) for listener in opened.cons_listeners] == [b"ping"] * 2
    client.release(opened.uid, (prod.address, cons.address), login)
    for server in stock_pair:
        # A hello that came too early was refused, and is said again.
        assert [name for name, _, _ in server.heard if name != "hello"] == ["req", "update", "release"]
        assert {request.uid for _, request, _ in server.heard} == {opened.uid}
        assert all(metadata["authorization"] == token for _, _, metadata in server.heard)
    with pytest.raises(TunnelError, match="release"):
        client.release(opened.uid, [prod.address], login)


def test_stock_servers_are_let_go_of_when_a_connection_fails(
    stock_pair: tuple[StockServer, StockServer], secrets: Credentials, producer: Echo
) -> None:
    prod, login = stock_pair[0], Access(ca=secrets.ca)
    nowhere = f"127.0.0.1:{free_ports(1)}"
    with pytest.raises(PeerLostError):
        client.connect(prod.address, nowhere, None, targets=[producer.address], access=login, timeout_s=10)
    assert [name for name, _, _ in prod.heard if name != "hello"] == ["req", "release"]


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        (lambda truth: truth[:1], "gave 1 listeners instead of 2"),
        (lambda truth: [truth[0], f"127.0.0.1:{free_ports(1)}"], "does not accept connections"),
    ],
)
def test_a_server_that_says_ok_is_not_believed(
    secrets: Credentials, producer: Echo, claim: Callable[[list[str]], list[str]], problem: str
) -> None:
    pair, login = secrets.server, Access(ca=secrets.ca)
    with StockServer(pair.certificate, pair.key, claim) as prod, StockServer(pair.certificate, pair.key) as cons:
        with pytest.raises(TunnelError, match=problem):
            client.connect(prod.address, cons.address, None, 2, targets=[producer.address], access=login, probe=True)
        assert prod.heard[-1][0] == "release"


def test_a_stock_server_in_a_container_gives_more_listeners(
    secrets: Credentials, producer: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    """Its Docker types answer five fixed ports whatever was asked for."""
    pair, login = secrets.server, Access(ca=secrets.ca)
    fixed = [f"127.0.0.1:{free_ports(1)}" for _ in range(3)]
    with (
        StockServer(pair.certificate, pair.key, lambda truth: [*truth, *fixed]) as prod,
        StockServer(pair.certificate, pair.key) as cons,
        caplog.at_level("WARNING"),
    ):
        opened = client.connect(prod.address, cons.address, None, 2, targets=[producer.address], access=login)
        assert [ping(listener) for listener in opened.cons_listeners] == [b"ping"] * 2
        assert len(opened.prod_listeners) == 2
    assert "gave 5 listeners, 2 were asked for: using 127.0.0.1:" in caplog.text


@pytest.mark.parametrize("plain_data", [False, True])
def test_tokens_without_plain_data_are_warned_about(
    secrets: Credentials, token: str, caplog: pytest.LogCaptureFixture, plain_data: bool
) -> None:
    assert token
    policy = Policy(PolicySection(plain_data=plain_data))
    with (
        caplog.at_level("WARNING"),
        ControlServer(side=None, credentials=secrets, allow_token=True, policy=policy),
    ):
        pass
    assert ("--allow-token without plain_data" in caplog.text) is not plain_data


# The programs themselves.


def stock_program(name: str) -> str:
    folder = os.environ.get("MINISTREAM_STOCK")
    if folder is None:
        pytest.skip("MINISTREAM_STOCK names no folder with stock s2uc and s2cs")
    return str(Path(folder) / name)


def outside() -> dict[str, str]:
    """The environment of a stock program, which is installed elsewhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def test_the_stock_client_program(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, token: str, producer: Echo, tmp_path: Path
) -> None:
    s2uc = stock_program("s2uc")
    _log_in(tmp_path, token)
    prod, cons = gateways

    def say(*words: str) -> str:
        command = [s2uc, *words, "--server_cert", str(secrets.directory / "ca.crt")]
        return subprocess.run(
            command, cwd=tmp_path, env=outside(), capture_output=True, text=True, timeout=60, check=True
        ).stdout

    port = producer.address.rpartition(":")[2]
    where = ("--remote_ip", "127.0.0.1", "--receiver_ports", port, "--num_conn", "2")
    said = say("inbound-request", "--s2cs", prod.address, *where)
    assert "Hello message sent successfully" in said
    assert "error" not in said.lower()
    uid = re.search(r"^(\S+) \S+ \S+ PROD$", said, re.MULTILINE)
    assert uid is not None
    listeners = re.findall(r"127\.0\.0\.1:\d+", said.splitlines()[-1])
    assert len(listeners) == 2
    said = say("outbound-request", "--s2cs", cons.address, *where, uid[1], ",".join(listeners))
    assert "error" not in said.lower()
    (info,) = cons.sessions()
    assert [ping(listener) for listener in info.listeners] == [b"ping"] * 2
    for server in gateways:
        assert "Release completed" in say("release", uid[1], "--s2cs", server.address)
        assert server.sessions() == []


def _log_in(folder: Path, token: str) -> None:
    """What `s2uc login` leaves behind."""
    import sqlite3

    with sqlite3.connect(folder / ".storage.db") as database:
        database.execute(
            "CREATE TABLE token_storage (namespace VARCHAR NOT NULL, resource_server VARCHAR NOT NULL,"
            " token_data_json VARCHAR NOT NULL, PRIMARY KEY (namespace, resource_server))"
        )
        database.execute(
            "CREATE TABLE config_storage (namespace VARCHAR NOT NULL, config_name VARCHAR NOT NULL,"
            " config_data_json VARCHAR NOT NULL, PRIMARY KEY (namespace, config_name))"
        )
        database.execute(
            "CREATE TABLE sdk_storage_adapter_internal (attribute VARCHAR NOT NULL, value VARCHAR NOT NULL,"
            " PRIMARY KEY (attribute))"
        )
        database.execute(
            "INSERT INTO sdk_storage_adapter_internal (attribute, value) VALUES ('database_schema_version', '1')"
        )
        record = json.dumps({"access_token": token, "resource_server": SCOPE})
        database.execute("INSERT INTO token_storage VALUES ('DEFAULT', ?, ?)", (SCOPE, record))
    database.close()


@pytest.fixture
def stock_s2cs(secrets: Credentials, tmp_path: Path) -> Iterator[Any]:
    """Starts stock control servers; they and what they started are ended."""
    import psutil

    program = stock_program("s2cs")
    started: list[subprocess.Popen[bytes]] = []

    def start(kind: str) -> str:
        port, data = free_ports(1), free_ports(1)
        command = [
            *(program, f"--port={port}", "--listener_ip=127.0.0.1", f"--type={kind}"),
            f"--port_range={data}-{data + 9}",
            f"--server_crt={secrets.directory / 'server.crt'}",
            f"--server_key={secrets.directory / 'server.key'}",
        ]
        folder = tmp_path / f"stock{port}"  # for its files, and HAProxy's
        folder.mkdir()
        env = outside() | {"HAPROXY_CONFIG_PATH": str(folder)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env=env, cwd=folder, **quiet))

        def listens() -> bool:
            with ControlClient(f"127.0.0.1:{port}", Access(ca=secrets.ca)) as control:
                try:
                    control.release("nobody")
                except PeerLostError:
                    return False
                except TunnelError:
                    return True
            return True

        eventually(listens)
        return f"127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
    # its proxies are daemons, children of nobody
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HAPROXY_CONFIG_PATH", "").startswith(str(tmp_path)):
                process.kill()


def test_our_client_joins_two_stock_servers(stock_s2cs: Any, secrets: Credentials, producer: Echo) -> None:
    prod, cons = stock_s2cs("HaproxySubprocess"), stock_s2cs("HaproxySubprocess")
    opened = client.connect(prod, cons, None, 2, targets=[producer.address], access=Access(ca=secrets.ca))
    assert not opened.secure
    eventually(lambda: _answers(opened.cons_listeners[0]))
    client.release(opened.uid, [prod, cons], Access(ca=secrets.ca))


def _answers(listener: str) -> bool:
    try:
        return ping(listener) == b"ping"
    except OSError:
        return False


@pytest.mark.parametrize("ours", ["PROD", "CONS"])
def test_our_stunnel_meets_a_stock_one(stock_s2cs: Any, secrets: Credentials, producer: Echo, ours: str) -> None:
    stock = stock_s2cs("StunnelSubprocess")
    policy = Policy(PolicySection(targets=("127.0.0.1:*",)))
    server = ControlServer(
        side=ours,
        kind="stunnel",
        credentials=secrets,
        policy=policy,
        options={"legacy_psk": True},
        insecure=True,
    )
    with server:
        addresses = (server.address, stock) if ours == "PROD" else (stock, server.address)
        opened = client.connect(*addresses, None, targets=[producer.address], access=Access(ca=secrets.ca), uid=UID)
        eventually(lambda: _answers(opened.cons_listeners[0]))
