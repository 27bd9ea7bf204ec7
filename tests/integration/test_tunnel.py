"""Both control servers, the client and the relays together: real sockets, real processes, TLS between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ministream.errors import AccessError, ConfigError, PeerLostError, TunnelError
from ministream.tunnel import certificates, client, credentials
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy, PolicySection
from ministream.tunnel.proxy import _process
from ministream.tunnel.sessions import Quota
from tests.integration.tunnel_ends import (
    Echo,
    children,
    dial,
    echoing,
    exchange,
    is_cut,
    make_credentials,
    need,
    ping,
)
from tests.ports import free_ports
from tests.waiting import eventually

PAYLOAD = os.urandom(1 << 20) * 6


@pytest.fixture
def gateways(secrets: Credentials, producer: Echo) -> Iterator[tuple[ControlServer, ControlServer]]:
    prod = ControlServer(side="PROD", credentials=secrets, targets=[producer.address])
    with prod, ControlServer(side="CONS", credentials=secrets) as cons:
        yield prod, cons


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
        # A reset, not an end of stream: the connection must not end as if everything had arrived.
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_nobody_reaches_the_producer_without_the_sessions_certificate(
    gateways: tuple[ControlServer, ControlServer], producer: Echo, secrets: Credentials
) -> None:
    opened = client.connect(gateways[0].address, gateways[1].address, secrets)
    with dial(opened.prod_listeners[0]) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while sock.recv(100):
                pass
    eventually(lambda: gateways[0].sessions()[0].traffic.refused == 1)
    assert producer.accepted == 0


def test_release_gives_ports_back_and_leaves_no_process(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    prod, cons = gateways
    before = len(children())
    opened = client.connect(prod.address, cons.address, secrets, num_conn=3)
    assert len(set(opened.cons_listeners)) == len(set(opened.prod_listeners)) == 3
    assert len(children()) > before
    sock = dial(opened.cons_listeners[0])
    client.release(opened.uid, (prod.address, cons.address), Access.of(secrets))
    client.release(opened.uid, (prod.address, cons.address), Access.of(secrets))
    assert len(children()) == before
    assert prod.sessions() == cons.sessions() == []
    with sock:
        assert is_cut(sock)
    with pytest.raises(ConnectionRefusedError):
        dial(opened.prod_listeners[0])


def test_a_client_without_certificate_is_refused(gateways: tuple[ControlServer, ControlServer]) -> None:
    with pytest.raises(PeerLostError):
        client.connect(gateways[0].address, gateways[1].address, None, timeout_s=5)


def test_a_client_of_another_authority_is_refused(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_credentials(other)
    # It trusts our server, so that it is the server who must refuse.
    mixed = Credentials(
        directory=other, ca=secrets.ca, server_pair=None, client_pair=Credentials.load(other).client_pair
    )
    with pytest.raises(PeerLostError):
        client.connect(gateways[0].address, gateways[1].address, mixed, timeout_s=5)


def test_a_failed_connect_lets_go_of_what_it_opened(secrets: Credentials, producer: Echo) -> None:
    with ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod:
        nobody = f"127.0.0.1:{free_ports(1)}"
        with pytest.raises(PeerLostError, match=nobody):
            client.connect(prod.address, nobody, secrets, timeout_s=5)
        assert prod.sessions() == []


def test_only_the_jobs_own_address_is_a_target(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    with pytest.raises(AccessError, match=r"127\.0\.0\.1:22 is not in this server's policy"):
        client.connect(gateways[0].address, gateways[1].address, secrets, targets=["127.0.0.1:22"])
    assert children() == []


def test_the_second_server_on_an_address_does_not_start(gateways: tuple[ControlServer, ControlServer]) -> None:
    second = ControlServer(side="PROD", address=gateways[0].address, insecure=True)
    with pytest.raises(TunnelError, match="cannot bind"):
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


def open_side(
    server: ControlServer, access: Access, uid: str, role: str, targets: list[str], num_conn: int = 1
) -> list[str]:
    """One side of a session up to its update, which is left to the caller; its listeners."""
    with ControlClient(server.address, access) as control:
        opened = control.open(uid, role, num_conn=num_conn, rate=0, targets=targets, timeout_s=10)
        return list(opened.listeners)


def single(server: ControlServer, uid: str, targets: list[str], num_conn: int = 1, rate: int = 0) -> list[str]:
    """A session through one insecure gateway, plain bytes."""
    with ControlClient(server.address, Access()) as control:
        opened = control.open(uid, "PROD", num_conn=num_conn, rate=rate, targets=targets, timeout_s=10)
        control.update(uid, "PROD", targets, None)
    return list(opened.listeners)


@pytest.fixture
def plain() -> Iterator[ControlServer]:
    """One insecure gateway that goes anywhere on this machine."""
    policy = Policy(PolicySection(targets=("127.0.0.1:*",)))
    with ControlServer(side=None, insecure=True, policy=policy) as server:
        yield server


def test_connections_are_dealt_to_targets_in_turn_and_retargeted(plain: ControlServer) -> None:
    with echoing() as one, echoing() as two, echoing() as three:
        listeners = single(plain, "s", [one.address, two.address], num_conn=3)
        kept, moved = dial(listeners[0]), dial(listeners[1])
        with kept, moved:
            for sock in (kept, moved):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            assert (one.accepted, two.accepted) == (1, 1)
            with ControlClient(plain.address, Access()) as control:
                assert control.update("s", "PROD", [one.address, three.address], None).prod_listeners == (
                    one.address,
                    three.address,
                    one.address,
                )
            assert is_cut(moved)
            kept.sendall(b"y")
            assert kept.recv(1) == b"y"
        assert ping(listeners[1]) == b"ping"
        assert three.accepted == 1


def test_an_empty_update_means_hellos_list(plain: ControlServer, producer: Echo) -> None:
    (listener,) = open_side(plain, Access(), "s", "PROD", [producer.address])
    with ControlClient(plain.address, Access()) as control:
        assert control.update("s", "PROD", [], None).prod_listeners == (producer.address,)
    assert ping(listener) == b"ping"


def test_a_consumer_may_come_before_everything_is_joined(plain: ControlServer) -> None:
    port = free_ports(1)
    (listener,) = open_side(plain, Access(), "s", "PROD", [f"127.0.0.1:{port}"])
    with dial(listener) as sock:
        sock.sendall(b"early")
        time.sleep(1)  # it stays open although nobody takes it
        with ControlClient(plain.address, Access()) as control:
            control.update("s", "PROD", [], None)
        time.sleep(1)  # and while the relay tries the target several times
        with echoing(port):
            assert sock.recv(5) == b"early"


@pytest.mark.slow
def test_a_producer_that_never_comes_ends_the_connection(plain: ControlServer) -> None:
    (listener,) = single(plain, "s", [f"127.0.0.1:{free_ports(1)}"])
    with dial(listener) as sock:
        assert is_cut(sock)


def test_a_release_whose_caller_gives_up_leaves_no_process(plain: ControlServer, producer: Echo) -> None:
    """gRPC cancels a call at its deadline; the session ends all the same."""
    from ministream.tunnel import messages

    open_side(plain, Access(), "s", "PROD", [producer.address])
    with ControlClient(plain.address, Access()) as control:
        control.update("s", "PROD", [], None)
    relays = children()
    assert relays
    for relay in relays:
        relay.suspend()
    sent, back = (messages.message_class(name) for name in messages.METHODS["release"])
    with grpc.insecure_channel(plain.address) as channel:
        release = channel.unary_unary(
            "/scistream.Control/release",
            request_serializer=sent.SerializeToString,
            response_deserializer=back.FromString,
        )
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            release(sent(uid="s"), timeout=0.5)
    for relay in relays:
        relay.resume()
    eventually(lambda: children() == [])


def test_an_update_whose_caller_gives_up_leaves_no_process(
    plain: ControlServer, producer: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC cancels it while the relay starts: the session still knows its process, and ends it."""
    from ministream.tunnel import messages

    started, go_on = threading.Event(), threading.Event()
    attach = _process.RelayProcess._attach

    async def slow(self: _process.RelayProcess) -> None:
        started.set()
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        await attach(self)

    monkeypatch.setattr(_process.RelayProcess, "_attach", slow)
    open_side(plain, Access(), "s", "PROD", [producer.address])
    sent, back = (messages.message_class(name) for name in messages.METHODS["update"])
    with grpc.insecure_channel(plain.address) as channel:
        update = channel.unary_unary(
            "/scistream.Control/update",
            request_serializer=sent.SerializeToString,
            response_deserializer=back.FromString,
        )
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            update(sent(uid="s", role="PROD"), timeout=0.5)
    assert started.is_set()
    assert children()
    go_on.set()
    with ControlClient(plain.address, Access()) as control:
        control.release("s")
    eventually(lambda: children() == [])


def test_hello_may_come_just_before_its_req(plain: ControlServer, producer: Echo) -> None:
    from ministream.tunnel import messages

    with grpc.insecure_channel(plain.address) as channel:
        hello, req = (
            channel.unary_unary(
                f"/scistream.Control/{name}",
                request_serializer=messages.message_class(messages.METHODS[name][0]).SerializeToString,
                response_deserializer=messages.message_class(messages.METHODS[name][1]).FromString,
            )
            for name in ("hello", "req")
        )
        early = hello.future(messages.Hello(uid="s", prod_listeners=[producer.address], role="CONS"), timeout=10)
        time.sleep(0.5)
        answer = req(messages.Request(uid="s", role="CONS", num_conn=2, rate=0), timeout=10)
        assert len(answer.listeners) == 2
        assert list(answer.prod_listeners) == [producer.address]
        assert early.result().message == "Sending listeners..."
        assert list(early.result().listeners) == list(answer.listeners)
        late = hello(messages.Hello(uid="s", prod_listeners=[producer.address], role="PROD"), timeout=10)
        assert (late.message, list(late.listeners)) == ("Sending Prod listeners...", [])


def test_a_hello_without_req_is_refused(plain: ControlServer) -> None:
    from ministream.tunnel import messages

    with grpc.insecure_channel(plain.address) as channel:
        hello = channel.unary_unary(
            "/scistream.Control/hello",
            request_serializer=messages.Hello.SerializeToString,
            response_deserializer=messages.AppResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            hello(messages.Hello(uid="nobody", role="PROD"), timeout=5)  # stock s2uc waits no longer
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def waiting_req(server: ControlServer, uid: str) -> tuple[grpc.Channel, grpc.Future]:
    from ministream.tunnel import messages

    channel = grpc.insecure_channel(server.address)
    req = channel.unary_unary(
        "/scistream.Control/req",
        request_serializer=messages.Request.SerializeToString,
        response_deserializer=messages.Response.FromString,
    )
    future = req.future(messages.Request(uid=uid, role="PROD", num_conn=1, rate=0), timeout=60)
    eventually(lambda: any(found.uid == uid for found in server.sessions()))
    return channel, future


def test_release_wakes_a_waiting_req(plain: ControlServer) -> None:
    channel, future = waiting_req(plain, "s")
    client.release("s", [plain.address], Access())
    with channel:
        assert isinstance(future.exception(timeout=5), grpc.RpcError)
    assert plain.sessions() == []


def test_a_caller_that_goes_away_takes_its_waiting_session_along(plain: ControlServer) -> None:
    channel, _ = waiting_req(plain, "s")
    channel.close()
    eventually(lambda: plain.sessions() == [])


def test_sessions_that_wait_too_long_expire_and_give_their_ports_back() -> None:
    policy = Policy(PolicySection(quota=Quota(pending_s=1.5)))
    with ControlServer(side=None, insecure=True, policy=policy) as server:
        channel, future = waiting_req(server, "s")
        (listener,) = server.sessions()[0].listeners
        with channel:
            assert future.exception(timeout=10).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert server.sessions() == []
        with pytest.raises(ConnectionRefusedError):
            dial(listener)


def test_ports_come_from_the_range_and_are_exactly_as_many_as_asked(producer: Echo) -> None:
    first = free_ports(3)
    policy = Policy(PolicySection(targets=("127.0.0.1:*",)))
    with ControlServer(side=None, insecure=True, policy=policy, port_range=(first, first + 2)) as server:
        with socket.create_server(("127.0.0.1", first + 1)):
            assert single(server, "a", [producer.address], 2) == [f"127.0.0.1:{first}", f"127.0.0.1:{first + 2}"]
            with pytest.raises(TunnelError, match=r"resource_exhausted"):
                single(server, "b", [producer.address])
        assert single(server, "c", [producer.address]) == [f"127.0.0.1:{first + 1}"]
        with pytest.raises(TunnelError, match=r"already_exists"):
            single(server, "c", [producer.address])
    for port in range(first, first + 3):
        socket.create_server(("127.0.0.1", port)).close()


def test_sessions_belong_to_who_opened_them(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials, mallory: Credentials, producer: Echo
) -> None:
    prod, cons = gateways
    opened = client.connect(prod.address, cons.address, secrets)
    with ControlClient(prod.address, Access.of(mallory)) as control:
        assert control.sessions() == []
        for attempt in (
            lambda: control.update(opened.uid, "PROD", [producer.address], None),
            lambda: control.release(opened.uid),
            lambda: control.open(opened.uid, "PROD", num_conn=1, rate=0, targets=[], timeout_s=5),
        ):
            with pytest.raises(TunnelError, match=r"another identity|already_exists"):
                attempt()
    assert ping(opened.cons_listeners[0]) == b"ping"
    with ControlClient(prod.address, Access.of(secrets)) as control:
        (found,) = control.sessions()
    assert (found["uid"], found["owner"], found["secure"]) == (opened.uid, "operator", True)


def test_revocation_works_on_a_running_server(tmp_path: Path, producer: Echo) -> None:
    own = make_credentials(tmp_path / "d", "operator", "mallory")
    mallory = Credentials.load(tmp_path / "mallory")
    with (
        ControlServer(side="PROD", credentials=own, targets=[producer.address]) as prod,
        ControlClient(prod.address, Access.of(mallory)) as control,
    ):
        assert control.sessions() == []
        credentials.revoke(own.directory, "mallory")
        with pytest.raises(AccessError, match="is revoked"):
            control.sessions()


def test_data_without_tls_only_where_the_policy_says_so(secrets: Credentials, producer: Echo) -> None:
    with ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod:
        open_side(prod, Access.of(secrets), "s", "PROD", [])
        with ControlClient(prod.address, Access.of(secrets)) as control:
            with pytest.raises(AccessError, match="no data without TLS"):
                control.update("s", "PROD", [], None)
            with pytest.raises(TunnelError, match="not a certificate"):
                control.update("s", "PROD", [], b"not a certificate")
    assert producer.accepted == 0


def test_the_consumers_side_goes_anywhere_but_only_to_the_sessions_peer(secrets: Credentials) -> None:
    with echoing() as stranger, ControlServer(side="CONS", credentials=secrets) as cons:
        (listener,) = open_side(cons, Access.of(secrets), "s", "CONS", [])
        other = certificates.make_session_pair(1).certificate
        with ControlClient(cons.address, Access.of(secrets)) as control:
            with pytest.raises(AccessError):
                control.update("s", "CONS", [stranger.address], None)
            control.update("s", "CONS", [stranger.address], other)
        # The stranger echoes our ClientHello, which is no TLS server's answer. The cut may come before we can send.
        with contextlib.suppress(ConnectionError), dial(listener) as sock:
            sock.sendall(b"secret projections")
            assert is_cut(sock)
        eventually(lambda: cons.sessions()[0].traffic.refused == 1)
        assert cons.sessions()[0].traffic.inward == 0


def test_a_clients_rate_limits_nothing_by_default(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    """Stock s2uc sends --rate 10000 with every request, and stock servers only store it."""
    prod, cons = gateways
    opened = client.connect(prod.address, cons.address, secrets, rate=10)
    assert opened.limit == ", ".join(
        f"{server.address}: no rate limit (its policy does not obey --rate)" for server in gateways
    )
    assert [session.rate_kbytes_s for server in gateways for session in server.sessions()] == [0, 0]
    client.release(opened.uid, (prod.address, cons.address), Access.of(secrets))


@pytest.mark.parametrize("kind", ["haproxy", "stunnel", "nginx"])
def test_a_limit_that_cannot_be_held_is_refused(kind: str) -> None:
    operators = Policy(PolicySection(rate_kbytes_s=500))
    with pytest.raises(ConfigError, match=f"{kind} cannot limit a session's rate: choose --kind relay"):
        ControlServer(side=None, insecure=True, kind=kind, policy=operators)
    clients = Policy(PolicySection(client_rate=True))
    with (
        ControlServer(side=None, insecure=True, kind=kind, policy=clients) as server,
        ControlClient(server.address, Access()) as control,
    ):
        with pytest.raises(TunnelError, match=f"{kind} cannot limit the rate to 7 kB/s: leave --rate out"):
            control.open("s", "PROD", num_conn=1, rate=7, targets=[], timeout_s=10)
        assert server.sessions() == []


def test_the_rate_is_kept(producer: Echo) -> None:
    policy = Policy(PolicySection(targets=("127.0.0.1:*",), client_rate=True, rate_kbytes_s=5000))
    with ControlServer(side=None, insecure=True, policy=policy) as server:
        (listener,) = single(server, "s", [producer.address], rate=2000)
        assert server.sessions()[0].rate_kbytes_s == 2000
        _takes_its_time(listener)


def _takes_its_time(listener: str) -> None:
    started = time.monotonic()
    assert exchange(listener, bytes(2_000_000)) == bytes(2_000_000)
    # 4 MB in all at 2 MB/s, less the first burst.
    assert time.monotonic() - started > 1.5


def test_a_slow_consumer_slows_the_producer_and_takes_no_memory(plain: ControlServer) -> None:
    sent = [0]
    listener = socket.create_server(("127.0.0.1", 0))

    def flood() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while True:
                sent[0] += connection.send(bytes(1 << 16))

    threading.Thread(target=flood, daemon=True).start()
    (entry,) = single(plain, "s", [f"127.0.0.1:{listener.getsockname()[1]}"])
    with dial(entry):
        eventually(lambda: sent[0] > 0)
        previous = -1
        while previous != sent[0]:
            previous = sent[0]
            time.sleep(0.5)
        relay = max(children(), key=lambda process: process.create_time())
        assert relay.memory_info().rss < 100 << 20
    assert sent[0] < 64 << 20
    listener.close()


def test_many_connections_one_after_the_other(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    opened = client.connect(gateways[0].address, gateways[1].address, secrets)
    open_files = [process.num_fds() for process in children()]
    for number in range(100):
        message = b"%d" % number
        assert ping(opened.cons_listeners[0], message) == message
    eventually(lambda: gateways[0].sessions()[0].traffic.connections == 0)
    eventually(lambda: [process.num_fds() for process in children()] == open_files)


def test_connections_at_the_same_time_use_several_processes(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    opened = client.connect(gateways[0].address, gateways[1].address, secrets, num_conn=4)
    results: list[bool] = []

    def one(listener: str) -> None:
        results.append(exchange(listener, PAYLOAD) == PAYLOAD)

    threads = [threading.Thread(target=one, args=(listener,)) for listener in opened.cons_listeners * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert len(children()) == 2 * min(4, len(os.sched_getaffinity(0)))


def test_an_idle_connection_stays(gateways: tuple[ControlServer, ControlServer], secrets: Credentials) -> None:
    opened = client.connect(gateways[0].address, gateways[1].address, secrets)
    with dial(opened.cons_listeners[0]) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        time.sleep(float(os.environ.get("MINISTREAM_IDLE_S", "3")))
        sock.sendall(b"b")
        assert sock.recv(1) == b"b"


def test_the_session_of_a_block_ends_with_it(
    gateways: tuple[ControlServer, ControlServer], secrets: Credentials
) -> None:
    with pytest.raises(ZeroDivisionError), client.session(gateways[0].address, gateways[1].address, secrets) as opened:
        assert ping(opened.cons_listeners[0]) == b"ping"
        _ = 1 / 0
    assert gateways[0].sessions() == gateways[1].sessions() == []


def test_quotas_keep_one_client_from_taking_everything(
    secrets: Credentials, mallory: Credentials, producer: Echo
) -> None:
    policy = Policy(PolicySection(quota=Quota(sessions_per_identity=2)))
    with ControlServer(side="PROD", credentials=secrets, targets=[producer.address], policy=policy) as prod:
        for uid in ("a", "b"):
            open_side(prod, Access.of(mallory), uid, "PROD", [])
        with pytest.raises(TunnelError, match="resource_exhausted"):
            open_side(prod, Access.of(mallory), "c", "PROD", [])
        open_side(prod, Access.of(secrets), "d", "PROD", [])


def test_ipv6_all_the_way() -> None:
    """Control, data and target on ::1; the certificate of the tests names IPv4 only, so without TLS on control."""
    echo = socket.create_server(("::1", 0), family=socket.AF_INET6)

    def serve() -> None:
        connection, _ = echo.accept()
        with connection:
            connection.sendall(connection.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    target = f"[::1]:{echo.getsockname()[1]}"
    servers = (
        ControlServer(side=side, address="[::1]:0", data_host="::1", insecure=True, targets=[target])
        for side in ("PROD", "CONS")
    )
    with contextlib.ExitStack() as stack:
        prod, cons = map(stack.enter_context, servers)
        opened = client.connect(prod.address, cons.address, None)
        assert opened.secure
        host, _, port = opened.cons_listeners[0].rpartition(":")
        assert host == "[::1]"
        with socket.create_connection(("::1", int(port)), timeout=10) as sock:
            sock.sendall(b"six")
            assert sock.recv(3) == b"six"
    echo.close()


def test_callers_are_given_the_advertised_host(producer: Echo) -> None:
    """As behind NAT: bound to every interface, announced under another name."""
    both = {"insecure": True, "targets": [producer.address], "data_host": "0.0.0.0", "advertise": "localhost"}
    with ControlServer(side="PROD", **both) as prod, ControlServer(side="CONS", insecure=True) as cons:
        opened = client.connect(prod.address, cons.address, None, probe=True)
        assert [listener.rpartition(":")[0] for listener in opened.prod_listeners] == ["localhost"]
        assert ping(opened.cons_listeners[0]) == b"ping"


@pytest.mark.parametrize("kind", ["relay", "stunnel"])
def test_what_is_announced_is_checked_from_the_consumers_gateway(producer: Echo, kind: str) -> None:
    need(kind)
    # an address of this machine on which nothing listens
    wrong = {"insecure": True, "targets": [producer.address], "advertise": "127.0.0.2", "kind": kind}
    with ControlServer(side="PROD", **wrong) as prod, ControlServer(side="CONS", insecure=True, kind=kind) as cons:
        with pytest.raises(TunnelError, match=r"127\.0\.0\.2:\d+.*from the consumer's gateway .*--advertise HOST"):
            client.connect(prod.address, cons.address, None)
        assert prod.sessions() == cons.sessions() == []


def test_an_entry_of_hello_without_a_port_is_kept_and_refused_when_it_is_used(
    plain: ControlServer, producer: Echo
) -> None:
    with ControlClient(plain.address, Access()) as control:
        answer = control.open("s", "PROD", num_conn=1, rate=0, targets=["127.0.0.1"], timeout_s=10)
        assert answer.prod_listeners == ("127.0.0.1",)
        with pytest.raises(TunnelError, match=r"target 127\.0\.0\.1, from hello, has no port"):
            control.update("s", "PROD", [], None)
        control.update("s", "PROD", [producer.address], None)
        assert ping(answer.listeners[0]) == b"ping"


def test_a_server_that_does_not_run_says_so() -> None:
    server = ControlServer(side=None, insecure=True)
    with pytest.raises(TunnelError, match="not running"):
        server.sessions()
    server.start()
    server.close()
    with pytest.raises(TunnelError, match="not running"):
        server.wait_session(1)
