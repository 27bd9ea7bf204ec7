"""Many sessions, many waiting callers, and callers that send rubbish: nothing grows, nothing falls over."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ministream.errors import TunnelError
from ministream.tunnel import client, messages
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy, PolicySection
from ministream.tunnel.refusal import Code
from tests.integration.tunnel_ends import Echo, children, dial, ping
from tests.waiting import HANG_S, eventually

# 1000 for the full soak; what is checked is the same.
SESSIONS = int(os.environ.get("MINISTREAM_SESSIONS", "30"))
KNOWN = {grpc.StatusCode[code.value] for code in Code}


def method(channel: grpc.Channel, name: str) -> Any:
    sent, back = messages.METHODS[name]
    return channel.unary_unary(
        f"/scistream.Control/{name}",
        request_serializer=messages.message_class(sent).SerializeToString,
        response_deserializer=messages.message_class(back).FromString,
    )


def test_fifty_sessions_wait_and_a_hello_is_answered_at_once(producer: Echo) -> None:
    with (
        ControlServer(side=None, insecure=True, targets=[producer.address]) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        threads = psutil.Process().num_threads()
        requests = [messages.Request(uid=f"w{n}", role="PROD", num_conn=1) for n in range(50)]
        waiting = [method(channel, "req").future(request, timeout=60) for request in requests]
        eventually(lambda: len(server.sessions()) == 50)
        # A waiting req holds no thread of the server; a few belong to gRPC itself.
        assert psutil.Process().num_threads() < threads + 20
        taken = []
        for n in range(50):
            started = time.monotonic()
            method(channel, "hello")(messages.Hello(uid=f"w{n}", role="PROD"), timeout=10)
            taken.append(time.monotonic() - started)
        assert all(len(answer.result().listeners) == 1 for answer in waiting)
        # At once: what a busy machine does to single calls does not count.
        assert min(taken) < 0.1


def test_sessions_opened_and_released_leave_nothing_behind(secrets: Credentials, producer: Echo) -> None:
    with (
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
    ):

        def once() -> None:
            with client.session(prod.address, cons.address, secrets) as opened:
                assert ping(opened.cons_listeners[0]) == b"ping"

        def held() -> tuple[int, int]:
            gc.collect()
            return psutil.Process().num_fds(), len(children())

        for _ in range(10):
            once()
        before, memory = held(), psutil.Process().memory_info().rss
        for _ in range(SESSIONS):
            once()
        eventually(lambda: held() <= before)
        assert psutil.Process().memory_info().rss - memory < (8 << 20) + SESSIONS * 10_000
        assert prod.sessions() == cons.sessions() == []


@pytest.fixture(scope="module")
def target() -> Iterator[ControlServer]:
    policy = Policy(PolicySection(targets=("127.0.0.1:1",)))
    with ControlServer(side=None, insecure=True, policy=policy) as server:
        yield server


def still_well(server: ControlServer) -> None:
    with ControlClient(server.address, Access()) as control:
        assert control.sessions() == []


text = st.text(max_size=100)
count = st.integers(-(2**31), 2**31 - 1)
calls = st.one_of(
    st.tuples(st.just("hello"), st.fixed_dictionaries({"uid": text, "role": text, "prod_listeners": st.lists(text)})),
    st.tuples(
        st.just("update"), st.fixed_dictionaries({"uid": text, "role": text, "remote_listeners": st.lists(text)})
    ),
    st.tuples(st.just("release"), st.fixed_dictionaries({"uid": text})),
    st.tuples(
        st.just("req"),
        st.fixed_dictionaries(
            # No valid session: a valid one would wait for its hello, as it should.
            {"uid": text, "role": st.sampled_from(["", "prod", "x"]), "num_conn": count, "rate": count}
        ),
    ),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls)
def test_any_message_is_answered_or_refused_and_nothing_is_made(
    target: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[str, dict[str, Any]]
) -> None:
    name, fields = call
    monkeypatch.setattr("ministream.tunnel.session_manager._HELLO_GRACE_S", 0.01)
    with grpc.insecure_channel(target.address) as channel:
        try:
            method(channel, name)(messages.message_class(messages.METHODS[name][0])(**fields), timeout=10)
        except grpc.RpcError as error:
            assert error.code() in KNOWN, error
    assert children() == []
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=300), name=st.sampled_from(list(messages.METHODS)))
def test_any_bytes_as_a_message(target: ControlServer, body: bytes, name: str) -> None:
    with grpc.insecure_channel(target.address) as channel:
        raw = channel.unary_unary(f"/scistream.Control/{name}", bytes, bytes)
        try:
            raw(body, timeout=0.3)
        except grpc.RpcError as error:
            assert error.code() in {*KNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    assert children() == []


@settings(max_examples=20, deadline=None)
@given(offer=st.binary(max_size=300))
def test_any_bytes_as_an_offer(target: ControlServer, offer: bytes) -> None:
    with ControlClient(target.address, Access()) as control:
        control.open("s", "PROD", num_conn=1, rate=0, targets=["127.0.0.1:1"], timeout_s=10)
        with pytest.raises(TunnelError, match="not a certificate"):
            control.update("s", "PROD", [], offer)
        control.release("s")
    assert children() == []


@pytest.mark.parametrize("payload", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(2000), b"\x16\x03\x01\xff\xff" + bytes(500)])
def test_rubbish_on_the_control_port(secrets: Credentials, producer: Echo, payload: bytes) -> None:
    with ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as server:
        for _ in range(20):
            with dial(server.address) as sock:
                sock.sendall(payload)
        with ControlClient(server.address, Access.of(secrets)) as control:
            assert control.sessions() == []
    assert children() == []


def test_only_tls_1_3_is_spoken(secrets: Credentials) -> None:
    with ControlServer(side="PROD", credentials=secrets) as server:
        for version, accepted in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
            context = ssl.create_default_context(cadata=secrets.ca.decode())
            context.minimum_version = context.maximum_version = version
            context.load_cert_chain(secrets.directory / "client.crt", secrets.directory / "client.key")
            with dial(server.address) as raw:
                if not accepted:
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        context.wrap_socket(raw, server_hostname="127.0.0.1")
                    continue
                with context.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
                    assert sock.version() == "TLSv1.3"


def test_strangers_that_linger_are_sent_away(secrets: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ministream.tunnel.tls_listener._STRANGER_S", 0.5)
    context = ssl.create_default_context(cadata=secrets.ca.decode())
    with (
        ControlServer(side="PROD", credentials=secrets) as server,
        dial(server.address) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
    ):
        sock.settimeout(HANG_S)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while sock.recv(1000):
                pass


def test_nobody_but_the_user_reaches_the_inner_socket(
    secrets: Credentials, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ControlServer(side="PROD", credentials=secrets) as server:
        (directory,) = tmp_path.iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
        # Whoever gets in there all the same is still nobody.
        with grpc.insecure_channel(f"unix:{directory / 'grpc'}") as channel, pytest.raises(grpc.RpcError) as caught:
            method(channel, "release")(messages.Release(uid="x"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert server.sessions() == []
    assert list(tmp_path.iterdir()) == []


def test_data_ports_are_on_the_named_interface_only(secrets: Credentials, producer: Echo) -> None:
    with ControlServer(side="PROD", insecure=True, data_host="127.0.0.2", targets=[producer.address]) as server:
        with ControlClient(server.address, Access()) as control:
            opened = control.open("s", "PROD", num_conn=1, rate=0, targets=[], timeout_s=10)
            control.update("s", "PROD", [], None)
        host, _, port = opened.listeners[0].rpartition(":")
        assert host == "127.0.0.2"
        assert ping(opened.listeners[0]) == b"ping"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)))
