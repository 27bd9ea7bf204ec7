"""One process of the built-in relay: `python -P -m ministream.tunnel.proxy._relay_worker PARENT FD...`.

PARENT is the control server's process number; the other arguments are the numbers of the inherited listening sockets.
Standard input is a socket to the control server: orders come in and counters go out, one JSON object a line. When the
socket closes, the process ends.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import ssl
import sys
from typing import Any

from ministream.tunnel.proxy._confine import confine
from ministream.tunnel.proxy._connection import ByteTotals, RelayRoute, carry
from ministream.tunnel.proxy._flow import Bucket
from ministream.tunnel.proxy._tls import TruncatedError, make_context
from ministream.tunnel.strangers import Strangers

# Connections whose caller is known, and places for those whose TLS handshake is not finished.
_MAX_CONNECTIONS = 256
_MAX_STRANGERS = 64
_MAX_STRANGERS_PER_ADDRESS = 32
_LINE_BYTES = 1 << 20
# See _process.py, which this process does not import.
DEBUG_MARK = "debug: "
_ACCEPT_AGAIN_S = 0.1
_DRAIN_S = 0.5


class RelayWorker:
    """Accepts on its listeners and relays their connections, as the control server orders."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        self._routes: list[RelayRoute] = []
        self._bucket = Bucket(0)
        self._totals = ByteTotals()
        self._strangers = Strangers(_MAX_STRANGERS, _MAX_STRANGERS_PER_ADDRESS)
        self._carried: dict[asyncio.Task[None], tuple[int, RelayRoute]] = {}
        self._acceptors: list[asyncio.Task[None]] = []

    async def run(self, control: socket.socket) -> None:
        """Until the control server closes the socket: execute the orders of each line, answer with the counters."""
        reader, writer = await asyncio.open_connection(sock=control, limit=_LINE_BYTES)
        try:
            while line := await reader.readline():
                orders = json.loads(line)
                if orders:
                    self._obey(orders)
                writer.write(json.dumps(self._totals.snapshot()).encode() + b"\n")
                await writer.drain()
        finally:
            for task in self._acceptors:
                task.cancel()
            # Data that an application sent just before its session closed must still be delivered.
            if self._carried:
                await asyncio.wait(self._carried, timeout=_DRAIN_S)
            for task in self._carried:
                task.cancel()

    def _obey(self, orders: dict[str, Any]) -> None:
        tls = peer = None
        if orders["tls"]:
            tls = make_context(**orders["tls"], accepts=orders["accepts_tls"])
            peer = ssl.PEM_cert_to_DER_cert(orders["tls"]["peer"])
        routes = [
            RelayRoute(
                addresses=tuple((family, tuple(address)) for family, address in addresses),
                tls=tls,
                peer=peer,
                accepts_tls=orders["accepts_tls"],
            )
            for addresses in orders["targets"]
        ]
        self._routes = routes
        self._bucket = Bucket(orders["rate_bytes_s"])
        # Connections to a target that is no longer wanted end; the others do not notice.
        for task, (index, route) in tuple(self._carried.items()):
            if route.addresses != routes[index].addresses or route.peer != routes[index].peer:
                task.cancel()
        if not self._acceptors:
            self._acceptors = [asyncio.create_task(self._accept(index)) for index in range(len(self._listeners))]

    async def _accept(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listeners[index])
            except OSError as error:
                # Out of file descriptors, or a caller that has already disconnected; neither ends the relay.
                _say(f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            task = asyncio.create_task(self._carry(accepted, str(address[0]), self._routes[index]))
            self._carried[task] = (index, self._routes[index])
            task.add_done_callback(self._ended)

    async def _carry(self, accepted: socket.socket, address: str, route: RelayRoute) -> None:
        """One connection: a stranger's until its handshake is done, then one of the session's."""
        task = asyncio.current_task()
        assert task is not None

        def known() -> None:
            self._strangers.leave(task)
            if len(self._carried) - len(self._strangers) > _MAX_CONNECTIONS:
                raise ConnectionRefusedError(f"more than {_MAX_CONNECTIONS} connections")

        self._strangers.enter(task, address, task.cancel)
        try:
            await carry(accepted, route, self._bucket, self._totals, known)
        finally:
            self._strangers.leave(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._carried[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, (OSError, TimeoutError)):
                raise error
            # Probes and peers that close first are part of a healthy run.
            closed = isinstance(error, (ConnectionResetError, BrokenPipeError, TruncatedError))
            mark = DEBUG_MARK if closed or getattr(error, "errno", None) == errno.ENOTCONN else ""
            _say(f"{mark}connection ended: {getattr(error, 'reason', None) or error or 'timed out'}")


def _say(text: str) -> None:
    """A line for the control server's log."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Entry point of the process."""
    if (kept := confine(int(sys.argv[1]), signal.SIGKILL)) is not None:
        _say(kept)
    # A terminal's Ctrl-C, mpirun's and Slurm's signals go to all processes of a job; the control server decides
    # when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    listeners = [socket.socket(fileno=int(fd)) for fd in sys.argv[2:]]
    for listener in listeners:
        listener.setblocking(False)
    control = socket.socket(fileno=os.dup(0))
    control.setblocking(False)

    async def work() -> None:
        await RelayWorker(listeners).run(control)

    asyncio.run(work())


if __name__ == "__main__":
    main()
