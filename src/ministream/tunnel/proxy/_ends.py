"""What a connection through a relay has at either end, and the plain kind: a TCP socket. Never blocking."""

from __future__ import annotations

import enum
import socket
from typing import Protocol

CHUNK = 512 * 1024


class Wait(enum.Enum):
    """Why a flow stopped moving bytes."""

    READ = "until its source has bytes"
    WRITE = "until its sink takes bytes"
    RATE = "until its rate limit allows more"
    TURN = "for its next turn"
    DONE = "for nothing: the source has ended and the sink knows"


class ProxyEnd(Protocol):
    """One end of a connection."""

    sock: socket.socket

    def read_into(self, buffer: memoryview) -> int | None:
        """Bytes read; 0 at the end of the stream, None if there are none yet."""

    def write(self, data: memoryview) -> int:
        """Bytes taken."""

    def flush(self) -> bool:
        """Whether everything taken has left for the kernel."""

    def finish(self) -> None:
        """Signal the end of writing; reading continues."""


class PlainEnd:
    """A TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read_into(self, buffer: memoryview) -> int | None:
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            return None

    def write(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def flush(self) -> bool:
        return True

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
