"""Every transport that a URL can name carries messages in the same way."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ministream import registry
from ministream.errors import ConfigError
from ministream.transport._channels import Channel, Listener, dial, listen

LIMIT = 100_000
TRANSPORTS = [
    name
    for name in registry.names("ministream.transport._channels")
    if hasattr(registry.load("ministream.transport._channels", name), "SCHEMES")
]
SCHEMES = [scheme for name in TRANSPORTS for scheme in registry.load("ministream.transport._channels", name).SCHEMES]
ADDRESSES = {"tcp": "tcp://127.0.0.1:0"}


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address that can be bound, of every scheme there is."""
    return ADDRESSES.get(request.param, f"{request.param}://{tmp_path}/socket")


@contextlib.contextmanager
def pair(url: str) -> Iterator[tuple[Listener, Channel]]:
    listener = listen(url, max_message_bytes=LIMIT)
    channel = dial(listener.address, max_message_bytes=LIMIT)
    try:
        yield listener, channel
    finally:
        channel.close()
        listener.close()


def introduced(listener: Listener, channel: Channel) -> bytes:
    """The name under which the listener knows the channel."""
    channel.send([b"hello"])
    received = listener.recv(5)
    assert received is not None
    assert [bytes(part) for part in received[1]] == [b"hello"]
    return received[0]


def broken(channel: Channel) -> str:
    """Receive until the channel is broken; why."""
    deadline = time.monotonic() + 5
    while not channel.broken and time.monotonic() < deadline:
        channel.recv(0.1)
    return channel.broken


def test_both_ways_are_known() -> None:
    assert {"tcp", "ipc", "inproc"} <= set(SCHEMES)


def test_parts_arrive_as_they_were_sent_in_both_directions(url: str) -> None:
    with pair(url) as (listener, channel):
        peer = introduced(listener, channel)
        pixels = np.arange(40_000, dtype="<u2")
        for number in range(10):
            assert listener.send(peer, [b"%d" % number, pixels.data, b""])
        for number in range(10):
            parts = channel.recv(5)
            assert parts is not None
            head, body, tail = parts
            assert (bytes(head), bytes(tail)) == (b"%d" % number, b"")
            assert np.array_equal(np.frombuffer(body, "<u2"), pixels)


def test_a_part_outlives_the_connection(url: str) -> None:
    with pair(url) as (listener, channel):
        peer = introduced(listener, channel)
        listener.send(peer, [bytes(range(250)) * 100])
        parts = channel.recv(5)
        assert parts is not None
    assert bytes(parts[0]) == bytes(range(250)) * 100


def test_peers_are_told_apart(url: str) -> None:
    with pair(url) as (listener, channel):
        other = dial(listener.address, max_message_bytes=LIMIT)
        peers = {introduced(listener, end): end for end in (channel, other)}
        assert len(peers) == 2
        for peer in peers:
            listener.send(peer, [peer])
        for peer, end in peers.items():
            parts = end.recv(5)
            assert parts is not None
            assert bytes(parts[0]) == peer
        other.close()


def test_waiting_ends_in_time_and_when_woken(url: str) -> None:
    with pair(url) as (listener, channel):
        introduced(listener, channel)
        for end in (listener, channel):
            started = time.monotonic()
            assert end.recv(0.05) is None
            assert 0.04 < time.monotonic() - started < 2
            alarm = threading.Timer(0.05, end.wake)
            alarm.start()
            assert end.recv(30) is None
            assert time.monotonic() - started < 10
            alarm.join()


def test_an_address_has_one_listener_and_is_free_afterwards(url: str) -> None:
    with pair(url) as (listener, _):
        address = listener.address
        if not url.startswith("ipc:"):  # a Unix socket is taken over: ZeroMQ removes the old file
            with pytest.raises(ConfigError, match=r"already in use.: choose another"):
                listen(address, max_message_bytes=LIMIT)
    listen(address, max_message_bytes=LIMIT).close()


def test_a_channel_breaks_when_nobody_listens(url: str) -> None:
    listener = listen(url, max_message_bytes=LIMIT)
    listener.close()
    channel = dial(listener.address, max_message_bytes=LIMIT)
    assert broken(channel)
    channel.send([b"into the void"])
    channel.close()


def test_a_channel_breaks_when_the_listener_goes_but_gives_out_what_had_come(url: str) -> None:
    with pair(url) as (listener, channel):
        peer = introduced(listener, channel)
        listener.send(peer, [b"last word"])
        listener.close(linger_s=2)
        parts = channel.recv(5)
        assert parts is not None
        assert bytes(parts[0]) == b"last word"
        assert broken(channel)


def test_a_peer_that_has_left_cannot_be_reached(url: str) -> None:
    with pair(url) as (listener, channel):
        peer = introduced(listener, channel)
        channel.close()
        deadline = time.monotonic() + 5
        while listener.send(peer, [b"hello?"]) and time.monotonic() < deadline:
            listener.recv(0.05)
        assert not listener.send(peer, [b"hello?"])
        assert not listener.send(b"nobody", [b"hello?"])


@pytest.mark.parametrize("up", [True, False])
def test_a_message_that_is_too_long_cuts_the_connection(url: str, up: bool) -> None:
    with pair(url) as (listener, channel):
        peer = introduced(listener, channel)
        if up:
            channel.send([bytes(LIMIT + 1)])
        else:
            listener.send(peer, [bytes(LIMIT + 1)])
        assert broken(channel)
        assert listener.recv(0.1) is None


@pytest.mark.parametrize("url", ["", "tcp", "127.0.0.1:5000", "udp://127.0.0.1:5000"])
def test_an_address_without_a_known_scheme_is_a_mistake(url: str) -> None:
    for use in (listen, dial):
        with pytest.raises(ConfigError, match=r"must begin with one of inproc://, ipc://, tcp://"):
            use(url, max_message_bytes=LIMIT)


@pytest.mark.parametrize("url", ["tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "ipc://"])
def test_an_address_that_means_nothing_is_a_mistake(url: str) -> None:
    for use in (listen, dial):
        with pytest.raises(ConfigError, match="is not a usable address"):
            use(url, max_message_bytes=LIMIT)


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(ConfigError, match=r"cannot bind tcp://192.0.2.1:5000 .not an address of this machine"):
        listen("tcp://192.0.2.1:5000", max_message_bytes=LIMIT)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
def test_a_host_that_does_not_exist_breaks_the_channel(host: str) -> None:
    channel = dial(f"tcp://{host}:5000", max_message_bytes=LIMIT)
    assert "cannot be resolved" in channel.broken
    assert channel.recv(1) is None
    channel.close()


def test_a_server_that_does_not_speak_zeromq_breaks_the_channel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        channel = dial(f"tcp://127.0.0.1:{server.getsockname()[1]}", max_message_bytes=LIMIT)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
        assert "ZeroMQ" in broken(channel)
        channel.close()
