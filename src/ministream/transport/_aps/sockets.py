"""Socket helpers of these wires: addresses and timeouts, in the project's errors and units."""

from __future__ import annotations

import math
from typing import Any

import zmq

from ministream import hosts
from ministream.errors import ConfigError


def milliseconds(seconds: float) -> int:
    """A timeout for ZeroMQ: whole milliseconds, rounded up, never negative."""
    return max(0, math.ceil(seconds * 1000))


def bind(socket: zmq.Socket[Any], address: str) -> str:
    """Listen at `address`, port 0 standing for any free one; returns where. Raises ConfigError."""

    def bind_one(url: str) -> str:
        socket.set(zmq.IPV6, int("[" in url))
        socket.bind(url)
        return socket.get_string(zmq.LAST_ENDPOINT)

    try:
        return hosts.bind_all(address, bind_one)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot bind {address} ({error.strerror}): choose another port or interface") from error


def connect(socket: zmq.Socket[Any], url: str) -> None:
    """Begin to connect to `url`; a name with several addresses by IPv4. Raises ConfigError if it is not an address."""
    first = hosts.addresses(url)[0]
    socket.set(zmq.IPV6, int("[" in first))
    try:
        socket.connect(first)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot connect to {url} ({error.strerror}): write tcp://HOST:PORT") from error


def silence(url: str, silence_s: float, instead: str) -> str:
    """Why a scan ends when its sender pauses, and how longer pauses are allowed."""
    return (
        f"{url}: no message for {silence_s:.0f} s, and {instead}: the scan ends here, and what is sent later is not "
        "received. Allow longer pauses with --stall-timeout SECONDS"
    )
