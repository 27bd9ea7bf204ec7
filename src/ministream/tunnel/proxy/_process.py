"""The control server's handle on one relay process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

from ministream import log
from ministream.errors import TunnelError
from ministream.tunnel.proxy._log_budget import LogBudget

_MODULE = "ministream.tunnel.proxy._relay_worker"
_ANSWER_S = 20.0
_END_S = 3.0
# How the relay process marks debug lines; the same in _relay_worker.py.
DEBUG_MARK = "debug: "

_LOG = log.get(__name__)


class RelayProcess:
    """A child started by exec, spoken to over a socket pair; it ends when the socket closes."""

    def __init__(
        self, process: asyncio.subprocess.Process, control: socket.socket, fail: Callable[[str], None]
    ) -> None:
        self.report: dict[str, Any] = {"inward": 0, "outward": 0, "open": 0, "opened": 0, "refused": 0, "cipher": None}
        self._process = process
        self._socket = control
        self._fail = fail
        self._closing = False
        self._answered = asyncio.Event()
        self._turn = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, listeners: Sequence[socket.socket], fail: Callable[[str], None]) -> Self:
        """Start a process that inherits the listeners. Raises TunnelError."""
        ours, theirs = socket.socketpair()
        fds = [listener.fileno() for listener in listeners]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                _MODULE,
                str(os.getpid()),
                *map(str, fds),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=fds,
                # Of its own group: mpirun signals a rank's whole group, and the bytes must flow until the rank is done.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise TunnelError(f"the relay process could not be started: {error.strerror}") from error
        finally:
            theirs.close()
        self = cls(process, ours, fail)
        try:
            await self._attach()
        except BaseException:
            self.kill()
            raise
        return self

    async def order(self, orders: dict[str, Any]) -> None:
        """Send orders and wait until they are executed. Raises TunnelError."""
        async with self._turn:
            await self._send(orders)
        if self._process.returncode is not None:
            raise TunnelError("the relay process ended: see the server's log")

    async def ask(self) -> dict[str, Any]:
        """The counters as they are now, or the last ones of a process that has ended."""
        if not self._closing:
            with contextlib.suppress(TunnelError):
                await self.order({})
        return self.report

    async def _send(self, orders: dict[str, Any]) -> None:
        assert self._writer is not None
        self._answered.clear()
        try:
            self._writer.write(json.dumps(orders).encode() + b"\n")
            await self._writer.drain()
            await asyncio.wait_for(self._answered.wait(), _ANSWER_S)
        except (OSError, TimeoutError):
            raise TunnelError("the relay process does not answer: see the server's log") from None

    def kill(self) -> None:
        """Kill it; `fail` is called as for any other unexpected end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Close the socket, wait for the end, reap."""
        self._closing = True
        if self._writer is not None:
            self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attach(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        self._tasks = [
            asyncio.create_task(self._read_reports(reader)),
            asyncio.create_task(self._read_log()),
        ]

    async def _read_reports(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.report = json.loads(line)
                self._answered.set()
        status = await self._process.wait()
        self._answered.set()
        if not self._closing:
            self._closing = True
            self._fail(f"relay process {self._process.pid} {_ending(status)}")

    async def _read_log(self) -> None:
        """Pass the process's lines on. Unauthenticated callers cause some, so their number per minute is limited."""
        assert self._process.stderr is not None
        budget = LogBudget(_LOG, f"relay {self._process.pid}")
        while line := await self._process.stderr.readline():
            text = line.decode("utf-8", "replace").rstrip()[:300]
            level = logging.DEBUG if text.startswith(DEBUG_MARK) else logging.INFO
            budget.pass_on(level, text.removeprefix(DEBUG_MARK))


def _ending(status: int) -> str:
    """How a process ended, for people."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
