"""Socket helpers of these wires: addresses and timeouts, in the project's errors and units."""

from __future__ import annotations

import math
from typing import Any

import zmq

from ministream.errors import ConfigError


def milliseconds(seconds: float) -> int:
    """A timeout for ZeroMQ: whole milliseconds, rounded up, never negative."""
    return max(0, math.ceil(seconds * 1000))


def bind(socket: zmq.Socket[Any], address: str) -> str:
    """Listen at `address`, port 0 standing for any free one; returns where. Raises ConfigError."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot bind {address} ({error.strerror}): choose another port or interface") from error
    return socket.get_string(zmq.LAST_ENDPOINT)


def connect(socket: zmq.Socket[Any], url: str) -> None:
    """Begin to connect to `url`. Raises ConfigError if it is not an address."""
    try:
        socket.connect(url)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot connect to {url} ({error.strerror}): write tcp://HOST:PORT") from error
