"""Data sockets: bound when a session is requested, on the named interface only, and held until it ends."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from ministream.errors import ConfigError
from ministream.tunnel.address import Endpoint
from ministream.tunnel.refusal import Code, RefusedError

_BACKLOG = 128


class PortPool:
    """Listening sockets on one interface, from a range of ports (None: any that is free)."""

    def __init__(self, host: str, port_range: tuple[int, int] | None) -> None:
        """Raises ConfigError for a host that is not an interface of this machine, or for an invalid range."""
        if port_range is not None and not 1 <= port_range[0] <= port_range[1] <= 65535:
            raise ConfigError(f"port range {port_range[0]}-{port_range[1]}: give two ports, the lower one first")
        self._range = port_range
        self._family, self._host = _interface(host)

    def bind(self, count: int) -> list[socket.socket]:
        """`count` listening sockets or none. Raises RefusedError (RESOURCE_EXHAUSTED) when the range is exhausted."""
        sockets: list[socket.socket] = []
        try:
            candidates = iter(self._candidates())
            while len(sockets) < count:
                port = next(candidates, None)
                if port is None:
                    first, last = self._range or (0, 0)
                    text = f"{count} data ports were requested, {len(sockets)} are free in {first}-{last}: release some"
                    raise RefusedError(Code.RESOURCE_EXHAUSTED, text)
                bound = self._bind_one(port)
                if bound is not None:
                    sockets.append(bound)
        except BaseException:
            for bound in sockets:
                bound.close()
            raise
        return sockets

    def _candidates(self) -> Iterable[int]:
        if self._range is None:
            return iter(lambda: 0, None)
        return range(self._range[0], self._range[1] + 1)

    def _bind_one(self, port: int) -> socket.socket | None:
        listener = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            # Allows reuse of a port while old connections are in TIME_WAIT; not while another socket listens.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Data servers share it among processes: one that loses the race to accept must not block.
            listener.setblocking(False)
            listener.bind((self._host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno in (errno.EADDRINUSE, errno.EACCES) and port:
                return None
            raise RefusedError(Code.RESOURCE_EXHAUSTED, f"no data port on {self._host}: {error.strerror}") from error
        return listener


def endpoint_of(listener: socket.socket) -> Endpoint:
    """The address a listening socket is bound to."""
    host, port = listener.getsockname()[:2]
    return Endpoint(host, port)


def _interface(host: str) -> tuple[socket.AddressFamily, str]:
    """The first address of the host that this machine has."""
    failure: OSError | None = None
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                try:
                    probe.bind(address)
                    return family, str(address[0])
                except OSError as error:
                    failure = failure or error
    except OSError as error:
        failure = error
    text = failure.strerror if failure else "no address"
    raise ConfigError(f"data interface {host!r}: {text}; name an address of this machine") from failure
