"""One process of the built-in relay: `python -P -m ministream.tunnel.proxy._relay_worker FD...`.

Standard input is a socket to the control server: orders come in and counters go out, one JSON object a line. The
arguments are the numbers of the inherited listening sockets. When the socket closes, the process ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import ssl
import sys
from typing import Any

from ministream.tunnel.proxy._connection import ByteTotals, Route, carry
from ministream.tunnel.proxy._flow import Bucket
from ministream.tunnel.proxy._tls import make_context

_PR_SET_PDEATHSIG = 1
_MAX_CONNECTIONS = 256
_LINE_BYTES = 1 << 20
_ACCEPT_AGAIN_S = 0.1


class RelayWorker:
    """Accepts on its listeners and carries what comes; obeys the control server."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        self._routes: list[Route] = []
        self._bucket = Bucket(0)
        self._totals = ByteTotals()
        self._places = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._carried: dict[asyncio.Task[None], tuple[int, Route]] = {}
        self._acceptors: list[asyncio.Task[None]] = []

    async def run(self, control: socket.socket) -> None:
        """Until the control server hangs up: every line is obeyed, if it has orders, and answered with the counters."""
        reader, writer = await asyncio.open_connection(sock=control, limit=_LINE_BYTES)
        try:
            while line := await reader.readline():
                orders = json.loads(line)
                if orders:
                    self._obey(orders)
                writer.write(json.dumps(self._totals.snapshot()).encode() + b"\n")
                await writer.drain()
        finally:
            for task in (*self._acceptors, *self._carried):
                task.cancel()

    def _obey(self, orders: dict[str, Any]) -> None:
        tls = peer = None
        if orders["tls"]:
            tls = make_context(**orders["tls"], accepts=orders["accepts_tls"])
            peer = ssl.PEM_cert_to_DER_cert(orders["tls"]["peer"])
        routes = [
            Route(
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
            await self._places.acquire()
            try:
                accepted, _ = await loop.sock_accept(self._listeners[index])
            except OSError as error:
                # Out of file descriptors, or a caller that left already; neither ends the relay.
                self._places.release()
                _say(f"accept: {error.strerror}")
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            except BaseException:
                self._places.release()
                raise
            route = self._routes[index]
            task = asyncio.create_task(carry(accepted, route, self._bucket, self._totals))
            self._carried[task] = (index, route)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._carried[task]
        self._places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, (OSError, TimeoutError)):
                raise error
            _say(f"connection ended: {getattr(error, 'reason', None) or error or 'timed out'}")


def _say(text: str) -> None:
    """A line for the control server's log."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Entry point of the process."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A terminal's Ctrl-C, mpirun's and Slurm's signals go to all processes of a job; the control server decides
    # when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    listeners = [socket.socket(fileno=int(fd)) for fd in sys.argv[1:]]
    for listener in listeners:
        listener.setblocking(False)
    control = socket.socket(fileno=os.dup(0))
    control.setblocking(False)

    async def work() -> None:
        await RelayWorker(listeners).run(control)

    asyncio.run(work())


if __name__ == "__main__":
    main()
