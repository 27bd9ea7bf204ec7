"""Names in addresses: bound and tried on every address that they have."""

from __future__ import annotations

import socket

import pytest

from ministream import hosts
from ministream.model import Scan
from ministream.transport._channels import dial, listen
from ministream.transport._native.frame_receiver import FrameReceiver
from ministream.transport._native.frame_sender import FrameSender
from ministream.tunnel.ports import PortPool, endpoint_of

SCAN = Scan(scan_id="s", rows=2, cols=4, projections=1, flats=0, darks=0, dtype="<u2")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.fixture
def dual(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name with an address of each family, the IPv6 one first, as many machines' localhost has them."""
    real = socket.getaddrinfo

    def found(host, port, *more, **named):  # type: ignore[no-untyped-def]
        if host != "dual.example":
            return real(host, port, *more, **named)
        port = port or 0
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return "dual.example"


def test_every_address_of_a_name_ipv4_first(dual: str) -> None:
    assert hosts.addresses(f"tcp://{dual}:7") == ["tcp://127.0.0.1:7", "tcp://[::1]:7"]


@pytest.mark.parametrize("url", ["tcp://*:7", "ipc:///tmp/x", "inproc://x", "tcp://a..b:7", "nonsense"])
def test_what_is_no_name_stays_as_it_is(url: str) -> None:
    assert hosts.addresses(url) == [url]


@ipv6
def test_a_listener_is_reached_at_every_address_of_its_name(dual: str) -> None:
    listener = listen(f"tcp://{dual}:0", max_message_bytes=100)
    port = listener.address.rpartition(":")[2]
    assert listener.address == f"tcp://127.0.0.1:{port}"
    for address in (f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"):
        channel = dial(address, max_message_bytes=100)
        channel.send([b"hello"])
        # the end of the connection before makes `recv` return too
        received = next(filter(None, (listener.recv(5) for _ in range(4))), None)
        channel.close()
        assert received is not None, address
    listener.close()


@ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_receiver_tries_every_address_of_a_name(dual: str, host: str) -> None:
    with FrameSender(f"tcp://{host}:0", SCAN) as sender:
        port = sender.address.rpartition(":")[2]
        with FrameReceiver(f"tcp://{dual}:{port}") as receiver:
            assert receiver.scan(20).scan_id == "s"


def test_data_ports_are_on_an_address_that_this_machine_has(dual: str) -> None:
    (listener,) = PortPool(dual, None).bind(1)
    assert endpoint_of(listener).host in ("::1", "127.0.0.1")
    listener.close()
