"""One worker's place at our distributor: its port, its connection, and its queue."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from ministream.errors import ConfigError
from ministream.model import Slab
from ministream.transport._aps.sockets import bind
from ministream.wire.tracemq import DistributorSession, Projection

_LARGEST_REQUEST = 1024
"""Bound in bytes on what a worker may send; the original sends 40."""


@dataclass(kw_only=True, eq=False)
class Served:
    """A listening socket, and the worker that introduced itself there.

    `closed` hears of connections that were closed; `connection` is the worker's, a file descriptor.
    """

    socket: zmq.Socket[bytes]
    closed: zmq.Socket[Any]
    name: str
    server: DistributorSession
    identity: bytes | None = None
    connection: int = -1
    rank: int = 0
    slab: Slab = field(default_factory=lambda: Slab(0, 0))
    queue: deque[Projection] = field(default_factory=deque)
    waiting: bool = False
    finishing: bool = False
    done: bool = False
    heard_s: float = 0.0

    @classmethod
    def listening(cls, context: zmq.Context[Any], address: str) -> Self:
        """A place at `address`. Raises ConfigError if it cannot be bound."""
        socket = context.socket(zmq.ROUTER)
        socket.set(zmq.MAXMSGSIZE, _LARGEST_REQUEST)
        closed = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            name = bind(socket, address)
        except ConfigError:
            socket.disable_monitor()
            closed.close()
            socket.close()
            raise
        return cls(socket=socket, closed=closed, name=name, server=DistributorSession(peer=f"the worker at {name}"))

    def close(self) -> None:
        """Release the port; queued messages get a second to leave."""
        self.socket.disable_monitor()
        self.closed.close()
        self.socket.close(linger=1000)

    def send(self, message: memoryview) -> None:
        """Answer the worker."""
        assert self.identity is not None
        self.socket.send_multipart([self.identity, b"", message], copy=False)

    def request(self) -> tuple[bytes, bytes, int]:
        """Identity, message and connection of the sender; the message is empty if the framing is not a REQ's."""
        identity, *parts = self.socket.recv_multipart(copy=False)
        framed = len(parts) == 2 and not parts[0].bytes
        return identity.bytes, parts[1].bytes if framed else b"", int(identity.get(zmq.SRCFD))

    def introduced(self, identity: bytes, connection: int, rank: int) -> None:
        """This is the worker; earlier closed connections are forgotten, because descriptors are reused."""
        self.identity, self.connection, self.rank = identity, connection, rank
        self.left()

    def left(self) -> bool:
        """Whether the worker's connection was closed; what it sent before can still be read."""
        numbers = []
        while self.closed.poll(0):
            numbers.append(int(recv_monitor_message(self.closed)["value"]))
        return self.connection in numbers
