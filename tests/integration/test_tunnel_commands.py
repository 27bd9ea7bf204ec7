"""The tunnel by command line: servers as programs, their ends, exit codes, certificates, output formats."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ministream import registry
from ministream.tunnel.session_manager import PROXIES
from tests.integration.tunnel_ends import Echo, dial, exchange, is_cut, need, ping
from tests.ports import free_ports
from tests.waiting import HANG_S, eventually

PAYLOAD = os.urandom(1 << 20)
MINISTREAM = [sys.executable, "-m", "ministream"]


def run(*words: str | Path, code: int = 0, timeout_s: float = HANG_S, cwd: Path | None = None) -> str:
    """Run `ministream WORDS`; its standard output, or its error when `code` is not 0. Never a traceback."""
    done = subprocess.run(
        [*MINISTREAM, *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


@dataclass
class Server:
    """A running `ministream s2cs`."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait; nothing of it may be left."""
        everyone = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(number)
        status = self.process.wait(HANG_S)
        _, left = psutil.wait_procs(everyone[1:], timeout=HANG_S)
        assert not left
        return status


@contextlib.contextmanager
def s2cs(tmp_path: Path, name: str, *words: str | Path) -> Iterator[Server]:
    """A server for the length of a block, ended by SIGTERM unless the block ended it."""
    announced, log = tmp_path / f"{name}.json", tmp_path / f"{name}.log"
    command = [*MINISTREAM, "s2cs", "--listen", "127.0.0.1:0", "--announce", str(announced), *map(str, words)]
    with log.open("w") as out:
        (tmp_path / "t").mkdir(exist_ok=True)
        process = subprocess.Popen(command, stderr=out, text=True, env=os.environ | {"TMPDIR": str(tmp_path / "t")})
    try:
        eventually(lambda: announced.exists() or process.poll() is not None)
        assert announced.exists(), log.read_text()
        server = Server(process, json.loads(announced.read_text())["control"], log)
        yield server
        if process.poll() is None:
            assert server.end() == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def kept_open(tmp_path: Path, *words: str | Path) -> Iterator[None]:
    """`connect --keep` for the length of a block."""
    command = [*MINISTREAM, "connect", "--keep", "--json", *map(str, words)]
    with (tmp_path / "connect.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        assert "cons_listeners" in process.stdout.readline()
        yield
        process.terminate()
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_connect_keeps_a_session_open_over_a_restarted_consumers_gateway(
    tmp_path: Path, authority: Path, producer: Echo
) -> None:
    control = free_ports(2)
    data = control + 1
    beside_cons = ("--side", "CONS", "--listen", f"127.0.0.1:{control}", "--port-range", f"{data}-{data}")

    def answers() -> bool:
        try:
            return ping(f"127.0.0.1:{data}") == b"ping"
        except OSError:
            return False

    login = ("--credentials", authority)
    with s2cs(tmp_path, "prod", "--side", "PROD", *login, "--target", producer.address) as prod:
        with contextlib.ExitStack() as stack:
            with s2cs(tmp_path, "cons", *beside_cons, *login) as cons:
                stack.enter_context(kept_open(tmp_path, "--prod", prod.address, "--cons", cons.address, *login))
                assert answers()
            assert not answers()
            with s2cs(tmp_path, "again", *beside_cons, *login):
                eventually(answers)
                stack.close()
                assert not answers()
        assert json.loads(run("sessions", "--s2cs", prod.address, *login, "--json")) == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("authority") / "d"
    assert "operator" in run("certs", "init", directory)
    return directory


def test_the_whole_way_by_command_line(tmp_path: Path, authority: Path, producer: Echo) -> None:
    with (
        s2cs(tmp_path, "prod", "--side", "PROD", "--credentials", authority, "--target", producer.address) as prod,
        s2cs(tmp_path, "cons", "--side", "CONS", "--credentials", authority) as cons,
    ):
        login = ("--credentials", authority)
        ends = ("--prod", prod.address, "--cons", cons.address)
        opened = json.loads(run("connect", *ends, *login, "--num-conn", "2", "--json"))
        assert opened["secure"]
        for listener in opened["cons_listeners"]:
            assert exchange(listener, PAYLOAD) == PAYLOAD
        (found,) = json.loads(run("sessions", "--s2cs", cons.address, *login, "--json"))
        assert (found["uid"], found["state"], found["owner"]) == (opened["uid"], "active", "operator")
        assert found["traffic"]["inward"] == 2 * len(PAYLOAD)
        assert opened["uid"] in run("sessions", "--s2cs", prod.address, *login)
        both = ("--s2cs", prod.address, "--s2cs", cons.address)
        assert run("release", opened["uid"], *both, *login) == "Release completed\n"
        assert run("release", opened["uid"], *both, *login) == "Release completed\n"
        assert json.loads(run("sessions", "--s2cs", cons.address, *login, "--json")) == []
        with pytest.raises(ConnectionRefusedError):
            dial(opened["cons_listeners"][0])
        table = run("connect", *ends, *login)
        assert "TLS between the gateways" in table
    for server in (prod, cons):
        text = server.log.read_text()
        assert "PRIVATE" not in text
        assert "closed: released" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", registry.names(PROXIES))
def test_everything_ends_with_the_server(
    tmp_path: Path, authority: Path, producer: Echo, kind: str, number: signal.Signals
) -> None:
    need(kind)
    words = ("--credentials", authority, "--kind", kind)
    with (
        s2cs(tmp_path, "prod", *words, "--target", producer.address) as prod,
        s2cs(tmp_path, "cons", *words) as cons,
    ):
        opened = json.loads(
            run("connect", "--prod", prod.address, "--cons", cons.address, "--credentials", authority, "--json")
        )
        with dial(opened["cons_listeners"][0]) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            assert prod.end(number) == 0
            assert cons.end(number) == 0
            assert is_cut(sock)
        for listener in (*opened["prod_listeners"], *opened["cons_listeners"], prod.address, cons.address):
            with pytest.raises(ConnectionRefusedError):
                dial(listener)
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.parametrize("kind", registry.names(PROXIES))
def test_no_orphan_even_when_the_server_is_killed(tmp_path: Path, authority: Path, producer: Echo, kind: str) -> None:
    need(kind)
    words = ("--credentials", authority, "--kind", kind)
    with (
        s2cs(tmp_path, "prod", *words, "--target", producer.address) as prod,
        s2cs(tmp_path, "cons", *words) as cons,
    ):
        opened = json.loads(
            run("connect", "--prod", prod.address, "--cons", cons.address, "--credentials", authority, "--json")
        )
        assert ping(opened["cons_listeners"][0]) == b"ping"
        assert prod.end(signal.SIGKILL) == -signal.SIGKILL
        # The port is free at once for the next server.
        with pytest.raises(ConnectionRefusedError):
            dial(opened["prod_listeners"][0])


def test_two_servers_on_one_address(tmp_path: Path, authority: Path) -> None:
    with s2cs(tmp_path, "first", "--credentials", authority) as first:
        for security in (("--credentials", authority), ("--insecure",)):
            error = run("s2cs", "--listen", first.address, *security, code=4)
            assert first.address in error
            assert "cannot bind" in error


def test_an_interrupted_connect_leaves_nothing_open(tmp_path: Path, authority: Path, producer: Echo) -> None:
    # The consumer's server never answers: a listening socket that nobody serves.
    import socket

    with (
        s2cs(tmp_path, "prod", "--credentials", authority, "--target", producer.address) as prod,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [*MINISTREAM, "connect", "--prod", prod.address, "--cons", nobody, "--credentials", str(authority)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

        def sessions() -> list[dict[str, str]]:
            found = run("sessions", "--s2cs", prod.address, "--credentials", authority, "--json")
            return list(json.loads(found))

        eventually(lambda: len(sessions()) == 1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=HANG_S)
        assert process.returncode == 130
        assert "Traceback" not in error
        assert sessions() == []


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("s2cs",), 2, "--credentials"),
        (("s2cs", "--insecure", "--listen", "0.0.0.0:0"), 2, "loopback only"),
        (("s2cs", "--insecure", "--kind", "magic"), 2, "choose one of"),
        (("s2cs", "--insecure", "--port-range", "1-2-3"), 2, "FIRST-LAST"),
        (("s2cs", "--insecure", "--port-range", "9-8"), 2, "lower one first"),
        (("s2cs", "--insecure", "--data-host", "203.0.113.7"), 2, "address of this machine"),
        (("s2cs", "--insecure", "--policy", "none.toml"), 2, "none.toml"),
        (("s2cs", "--insecure", "--target", "nonsense"), 4, "host:port"),
        (("s2cs", "--insecure", "--legacy-psk"), 2, "stunnel only"),
        (("s2cs", "--credentials", "nowhere"), 2, "ministream certs"),
        (("connect", "--prod", "127.0.0.1:1", "--cons", "127.0.0.1:1"), 2, "--credentials"),
        (("connect", "--prod", "127.0.0.1:1", "--cons", "127.0.0.1:1", "--insecure"), 4, "127.0.0.1:1"),
        (("connect", "--prod", "192.0.2.1:1", "--cons", "127.0.0.1:1", "--insecure"), 2, "not loopback"),
        (("connect", "--prod", "a:1", "--cons", "b:1", "--insecure", "--format", "xml"), 2, "s2uc or s2uc-1.2.0"),
        (("inbound-request", "--s2cs", "127.0.0.1:1", "--insecure", "--format", "json"), 2, "s2uc or s2uc-1.2.0"),
        (("s2cs", "--insecure", "--advertise", "gateway:5000"), 2, "without a port"),
        (("s2cs", "--insecure", "--advertise", "0.0.0.0"), 2, "names no machine"),
        (("s2cs", "--insecure", "--data-host", "0.0.0.0"), 2, "--advertise HOST"),
        (("release", "x", "--s2cs", "127.0.0.1:1", "--insecure"), 4, "127.0.0.1:1"),
        (("sessions", "--s2cs", "127.0.0.1:1", "--insecure"), 4, "127.0.0.1:1"),
        (("inbound-request", "--s2cs", "127.0.0.1:1", "--insecure"), 4, "127.0.0.1:1"),
        (("inbound-request", "--s2cs", "127.0.0.1:1", "--scope", "x", "--insecure"), 2, ".storage.db"),
        (("certs", "server", "nowhere", "--name", "x"), 2, "--host"),
        (("certs", "revoke", "nowhere", "x"), 2, "nowhere"),
    ],
)
def test_mistakes_end_with_one_line_and_their_code(
    tmp_path: Path, words: tuple[str, ...], code: int, complaint: str
) -> None:
    error = run(*words, code=code, cwd=tmp_path)
    assert complaint in error
    assert len(error.strip().splitlines()) == 1


def test_certificates_by_command_line(tmp_path: Path) -> None:
    authority, out = tmp_path / "a", tmp_path / "bob"
    run("certs", "init", authority, "--host", "gw.example.org", "--days", "30")
    assert "bob" in run("certs", "client", authority, "--name", "bob", "--out", out)
    run("certs", "server", authority, "--name", "gw2", "--host", "192.0.2.7", "--out", tmp_path / "gw2")
    run("certs", "renew", authority, "bob", "--out", out)
    assert "bob" in run("certs", "revoke", authority, "bob")
    shown = run("certs", "show", authority)
    for word in ("gw2", "bob", "revoked", "operator", "valid"):
        assert word in shown
    token = run("certs", "token", authority, "--name", "carol").strip()
    assert re.fullmatch(r"ministream_[A-Za-z0-9_-]{43}", token)
    assert token not in (authority / "tokens").read_text()


def test_the_output_of_stock_s2uc(tmp_path: Path, producer: Echo) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('targets = ["127.0.0.1:*"]\n')
    with s2cs(tmp_path, "both", "--insecure", "--policy", policy) as server:
        port = producer.address.rpartition(":")[2]
        both = ("--prod", server.address, "--cons", server.address)
        error = run("connect", *both, "--insecure", "--target", producer.address, code=4)
        assert "already_exists" in error
        said = run(
            *("inbound-request", "--plain", "--insecure", "--s2cs", server.address, "--num_conn", "2"),
            *("--remote_ip", "127.0.0.1", "--receiver_ports", port, "--rate", "10000"),
        ).splitlines()
        uid = said[1].split()[0]
        assert said[0] == "uid; s2cs; access_token; role"
        assert said[1] == f"{uid} {server.address} INVALID_TOKEN PROD"
        assert "started client request" in said
        assert "Hello message sent successfully" in said
        assert re.fullmatch(r"Listeners: \['127\.0\.0\.1:\d+', '127\.0\.0\.1:\d+'\]", said[-1])
        listeners = re.findall(r"127\.0\.0\.1:\d+", said[-1])
        assert ping(listeners[1]) == b"ping"
        with s2cs(tmp_path, "cons", "--insecure", "--policy", policy) as cons:
            said = run(
                *("outbound-request", "--plain", "--insecure", "--s2cs", cons.address, "--num_conn", "2"),
                *("--remote_ip", "127.0.0.1", uid, ",".join(listeners)),
            ).splitlines()
            assert said[1] == f"{uid} {cons.address} INVALID_TOKEN CONS"
            entries = re.findall(r"127\.0\.0\.1:\d+", said[-1])
            assert [ping(entry) for entry in entries] == [b"ping", b"ping"]
        with s2cs(tmp_path, "other", "--insecure") as other:
            said = run(
                *("connect", "--prod", server.address, "--cons", other.address, "--insecure", "--format", "s2uc"),
                *("--target", producer.address),
            ).splitlines()
        assert [line for line in said if line.endswith(("PROD", "CONS"))] == [
            f"{said[1].split()[0]} {server.address} INVALID_TOKEN PROD",
            f"{said[1].split()[0]} {other.address} INVALID_TOKEN CONS",
        ]
        assert said[-1].startswith("Listeners: ['127.0.0.1:")
        with s2cs(tmp_path, "older", "--insecure") as other:
            words = ("--target", producer.address, "--format", "s2uc-1.2.0")
            text = run("connect", "--prod", server.address, "--cons", other.address, "--insecure", *words)
        assert len(re.findall(r'^listeners: "127\.0\.0\.1:\d+"$', text, re.MULTILINE)) == 2


@pytest.mark.parametrize("kind", ["relay", "stunnel"])
def test_requests_side_by_side_are_encrypted_like_connect(
    tmp_path: Path, authority: Path, producer: Echo, kind: str
) -> None:
    need(kind)
    words = ("--credentials", authority, "--kind", kind)
    login = ("--credentials", authority, "--num_conn", "2", "--remote_ip", "127.0.0.1")
    target = ("--target", producer.address)
    with s2cs(tmp_path, "prod", *words, *target) as prod, s2cs(tmp_path, "cons", *words) as cons:
        ports = ("--receiver_ports", producer.address.rpartition(":")[2])
        said = run("inbound-request", *login, *ports, "--s2cs", prod.address).splitlines()
        uid, listeners = said[1].split()[0], ",".join(re.findall(r"127\.0\.0\.1:\d+", said[-1]))
        outbound = ("outbound-request", *login, "--s2cs", cons.address)
        error = run(*outbound, uid, listeners, code=2)
        assert "--inbound-s2cs HOST:PORT" in error
        assert json.loads(run("sessions", "--s2cs", cons.address, "--credentials", authority, "--json")) == []
        said = run(*outbound, "--inbound-s2cs", prod.address, uid, listeners).splitlines()
        entries = re.findall(r"127\.0\.0\.1:\d+", said[-1])
        assert [ping(entry) for entry in entries] == [b"ping", b"ping"]
        for server in (prod, cons):
            told = run("sessions", "--s2cs", server.address, "--credentials", authority, "--json")
            (session,) = json.loads(told)
            assert (session["state"], session["secure"]) == ("active", True)


def test_plain_data_is_asked_for_and_warned_of(tmp_path: Path, producer: Echo) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('targets = ["127.0.0.1:*"]\n')
    with s2cs(tmp_path, "s", "--insecure", "--policy", policy) as server:
        port = producer.address.rpartition(":")[2]
        where = ("--insecure", "--s2cs", server.address, "--remote_ip", "127.0.0.1", "--receiver_ports", port)
        told = subprocess.run(
            [*MINISTREAM, "inbound-request", "--plain", *where], check=True, capture_output=True, text=True, timeout=60
        )
        assert "unencrypted" in told.stderr
        assert "unencrypted" not in told.stdout


def test_tokens_are_masked(tmp_path: Path, authority: Path, producer: Echo) -> None:
    token = run("certs", "token", authority, "--name", "stock").strip()
    (tmp_path / "token").write_text(token)
    policy = tmp_path / "policy.toml"
    policy.write_text('plain_data = true\ntargets = ["127.0.0.1:*"]\n')
    words = ("--credentials", authority, "--allow-token", "--policy", policy)
    login = ("--server_cert", authority / "ca.crt", "--token-file", tmp_path / "token")
    with s2cs(tmp_path, "s", *words) as server:
        port = producer.address.rpartition(":")[2]
        where = ("--s2cs", server.address, "--remote_ip", "127.0.0.1", "--receiver_ports", port)
        said = run("inbound-request", "--plain", *where, *login)
        assert "******** PROD" in said
        assert token not in said
        (tmp_path / "token").write_text("wrong" + token)
        error = run("inbound-request", *where, *login, code=4)
        assert "valid token is needed" in error
        assert token not in error
        assert token not in server.log.read_text()


def test_a_restarted_server_gets_its_address_and_ports_back(tmp_path: Path, producer: Echo) -> None:
    control, data = free_ports(1), free_ports(1)
    for attempt in range(2):
        words = ("--insecure", "--target", producer.address, "--port-range", f"{data}-{data}")
        with s2cs(tmp_path, f"s{attempt}", *words, "--listen", f"127.0.0.1:{control}") as server:
            assert server.address == f"127.0.0.1:{control}"
            said = run(
                *("inbound-request", "--plain", "--insecure", "--s2cs", server.address, "--num_conn", "1"),
                *("--remote_ip", "127.0.0.1", "--receiver_ports", producer.address.rpartition(":")[2]),
            )
            assert f"127.0.0.1:{data}" in said
            with dial(f"127.0.0.1:{data}") as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                server.end()
