"""A data server that dies is replaced, and the session goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ministream.tunnel import client, joint
from ministream.tunnel.control import ControlServer
from tests.integration.tunnel_ends import (
    Echo,
    children,
    dial,
    echoed,
    echoing,
    is_cut,
    make_credentials,
    ping,
)
from tests.waiting import eventually


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echoing() as echo:
        yield echo


def workers() -> list[psutil.Process]:
    """The relay's processes that run; one that was killed may not be reaped yet."""
    found = []
    for child in children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "_relay_worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def answers(listener: str) -> bool:
    try:
        return ping(listener) == b"ping"
    except OSError:
        return False


@pytest.mark.parametrize("side", ["PROD", "CONS"])
def test_a_killed_relay_process_is_restarted_and_the_session_goes_on(tmp_path: Path, producer: Echo, side: str) -> None:
    secrets = make_credentials(tmp_path / "d")
    with (
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets) as opened,
    ):
        own = prod if side == "PROD" else cons
        first, second = workers()  # in the order in which the sides were joined
        with dial(opened.cons_listeners[0]) as sock:
            assert echoed(sock, b"before") == b"before"
            os.kill((first if side == "PROD" else second).pid, signal.SIGKILL)
            assert is_cut(sock)
        eventually(lambda: answers(opened.cons_listeners[0]))
        (session,) = own.sessions()
        assert session.uid == opened.uid
        assert session.state == "active"
        assert own.failure is None
    eventually(lambda: not workers())


def test_a_relay_process_that_keeps_dying_ends_the_session_with_the_cause(tmp_path: Path, producer: Echo) -> None:
    secrets = make_credentials(tmp_path / "d")
    with (
        ControlServer(side="PROD", credentials=secrets, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets),
    ):
        known: set[int] = set()
        for _ in range(6):
            eventually(lambda: any(worker.pid not in known for worker in workers()[:2]) and len(workers()) == 2)
            for worker in workers():
                known.add(worker.pid)
            os.kill(max(workers(), key=lambda worker: worker.create_time()).pid, signal.SIGKILL)
        eventually(lambda: prod.failure is not None or cons.failure is not None)
        failure = str(prod.failure or cons.failure)
        assert "killed by SIGKILL" in failure
        assert "6 times" in failure


def test_a_restarted_control_server_gets_the_session_anew(
    tmp_path: Path, producer: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "LOOK_S", 0.2)
    secrets = make_credentials(tmp_path / "d")

    def beside_the_producer(address: str = "127.0.0.1:0") -> ControlServer:
        return ControlServer(side="PROD", address=address, credentials=secrets, targets=[producer.address])

    with ControlServer(side="CONS", credentials=secrets) as cons:
        with beside_the_producer() as prod, contextlib.ExitStack() as stack:
            address = prod.address
            opened = stack.enter_context(client.session(address, cons.address, secrets))
            assert ping(opened.cons_listeners[0]) == b"ping"
            later = stack.pop_all()
        with later, beside_the_producer(address) as again:
            # the consumer's address is still the same
            eventually(lambda: answers(opened.cons_listeners[0]))
            assert [session.uid for session in again.sessions()] == [opened.uid]
        assert cons.sessions() == []
