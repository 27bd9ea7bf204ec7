"""Limits time and bytes of the connections to a listening TCP socket of ZeroMQ.

ZeroMQ limits the size of a part, not the number of parts of a message that is still arriving, nor the number of
connections. The kernel knows what a connection has received, so a connection that sends too much, or nothing that the
session admits, is shut down here; ZeroMQ then sees it as closed by its peer.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from dataclasses import dataclass

# The place of `tcpi_bytes_received` in `struct tcp_info` of linux/tcp.h.
_BYTES_RECEIVED = struct.Struct("=128xQ")
# Seconds between two checks: at 10 Gbit/s a stranger sends at most 125 MB in between.
LOOK_S = 0.1
HELLO_S = 10.0
MAX_STRANGERS = 64
# A receiver sends about 100 bytes for each frame it uses.
_BURST_BYTES, _BYTES_PER_S = 2**20, 4 * 2**20


@dataclass(slots=True)
class _Connection:
    """One TCP connection, known by its file descriptor and, since those are reused, its inode."""

    fd: int
    inode: int
    address: str
    since_s: float
    admitted: bool = False

    @classmethod
    def of(cls, fd: int, now: float) -> _Connection | None:
        """The connection behind `fd`; None if it is already closed."""
        try:
            view = socket.socket(fileno=fd)
        except OSError:
            return None
        try:
            return cls(fd, os.fstat(fd).st_ino, str(view.getpeername()[0]), now)
        except OSError:
            return None
        finally:
            view.detach()

    def received(self) -> int | None:
        """Bytes received over it; None if it is closed."""
        try:
            if os.fstat(self.fd).st_ino != self.inode:
                return None
            view = socket.socket(fileno=self.fd)
        except OSError:
            return None
        try:
            info = view.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
            return int(_BYTES_RECEIVED.unpack(info)[0])
        except OSError:
            return None
        finally:
            view.detach()

    def shut_down(self) -> None:
        """End it, if it is still the same; ZeroMQ closes the descriptor."""
        if self.received() is None:
            return
        view = socket.socket(fileno=self.fd)
        try:
            view.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # its peer closed it first
        finally:
            view.detach()


class ConnectionGuard:
    """Bounds the connections of one listener. Strangers have a separate budget: they displace only each other.

    A stranger is a connection that the session has not admitted. `now` is a monotonic time in seconds.
    """

    def __init__(self) -> None:
        self._connections: dict[int, _Connection] = {}
        self._looked_s = 0.0

    @property
    def watching(self) -> bool:
        """Whether there is a connection to check."""
        return bool(self._connections)

    def accepted(self, fd: int, now: float) -> None:
        """A connection was made. With too many strangers, the oldest of the busiest address is closed."""
        if self._known(fd, now) is None:
            return
        strangers = [one for one in self._connections.values() if not one.admitted]
        if len(strangers) > MAX_STRANGERS:
            busiest, _ = Counter(one.address for one in strangers).most_common(1)[0]
            self._end(min((one for one in strangers if one.address == busiest), key=lambda one: one.since_s))

    def admit(self, fd: int, now: float) -> None:
        """The session serves the peer behind this descriptor; its Hello may come before the word that it connected."""
        connection = self._known(fd, now)
        if connection is not None:
            connection.admitted = True

    def look(self, now: float) -> list[str]:
        """If a check is due, end connections that send too much or too late; returns one line for each."""
        if now - self._looked_s < LOOK_S:
            return []
        self._looked_s = now
        return [text for connection in list(self._connections.values()) if (text := self._judged(connection, now))]

    def _known(self, fd: int, now: float) -> _Connection | None:
        """The connection behind `fd`, remembered from now on; None if it is closed."""
        connection = _Connection.of(fd, now)
        if connection is None:
            return None
        known = self._connections.get(fd)
        if known is None or known.inode != connection.inode:
            self._connections[fd] = connection
        return self._connections[fd]

    def _judged(self, connection: _Connection, now: float) -> str:
        received = connection.received()
        if received is None:
            self._connections.pop(connection.fd, None)
            return ""
        age_s = now - connection.since_s
        if received > _BURST_BYTES + _BYTES_PER_S * age_s:
            self._end(connection)
            return f"peer {connection.address} sent {received} bytes in {age_s:.1f} s"
        if age_s > HELLO_S and not connection.admitted:
            self._end(connection)
            return f"peer {connection.address} sent no Hello within {HELLO_S:g} s"
        return ""

    def _end(self, connection: _Connection) -> None:
        self._connections.pop(connection.fd, None)
        connection.shut_down()
