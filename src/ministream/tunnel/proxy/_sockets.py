"""The TCP sockets of a relay: socket options, and connecting."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

_DIAL_S = 5.0
_DIAL_PATIENCE_S = 15.0
_DIAL_AGAIN_S = 0.2


def tune(sock: socket.socket) -> None:
    """Set the options of a connected socket, and make it non-blocking."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Detects a peer that vanished silently; an idle but live one stays as long as the session.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
    if _stays_here(sock):
        # Inside a machine nothing is lost or queued. A congestion control that paces (BBR) only costs time there.
        # The system may forbid the change.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


async def dial(addresses: Sequence[tuple[int, tuple[Any, ...]]]) -> socket.socket:
    """Connect to the first (family, socket address) that answers, giving an application that is about to listen some
    time. Raises OSError."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _DIAL_PATIENCE_S
    while True:
        failure: OSError | None = None
        for family, address in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await asyncio.wait_for(loop.sock_connect(sock, address), _DIAL_S)
                tune(sock)
            except (OSError, TimeoutError) as error:
                sock.close()
                failure = error if isinstance(error, OSError) else OSError("timed out")
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        if loop.time() >= give_up:
            raise failure or OSError("no address to connect to")
        await asyncio.sleep(_DIAL_AGAIN_S)


def _stays_here(sock: socket.socket) -> bool:
    here, there = sock.getsockname()[0], sock.getpeername()[0]
    return bool(here == there or ipaddress.ip_address(there).is_loopback)
