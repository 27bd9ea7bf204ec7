"""The built-in data server: splice(2) for plain bytes, TLS 1.3 with per-session certificates between two relays."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from ministream import log
from ministream.errors import TunnelError
from ministream.tunnel.certificates import check_peer, make_session_pair
from ministream.tunnel.proxy import SESSION_DAYS, Addresses, Setup, Traffic
from ministream.tunnel.proxy._process import RelayProcess
from ministream.tunnel.role import Role

_MAX_PROCESSES = 8
# A process that dies is restarted; repeated deaths end the session.
_MAX_RESTARTS = 5
_RESTART_WINDOW_S = 60.0

_LOG = log.get(__name__)


class Proxy:
    """Listeners are distributed over one process per core; with a rate limit there is one process."""

    limits_rate = True

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._pair = make_session_pair(SESSION_DAYS)
        cores = 1 if setup.rate_kbytes_s else min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
        self._shares = [setup.listeners[first::cores] for first in range(min(cores, len(setup.listeners)))]
        self._processes: list[RelayProcess] = []
        self._orders: list[dict[str, Any]] = []
        # Bytes carried by processes that have died, as last reported.
        self._past: Counter[str] = Counter()
        self._restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)
        self._restarting: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._closing = False

    @property
    def offer(self) -> bytes:
        """This side's session certificate."""
        return self._pair.certificate

    @property
    def secures_itself(self) -> bool:
        return False

    async def forward(self, targets: Sequence[Addresses], peer: bytes | None) -> None:
        tls = None
        if peer is not None:
            pair = self._pair
            tls = {"certificate": pair.certificate.decode(), "key": pair.key.decode(), "peer": check_peer(peer)}
        step = len(self._shares)
        async with self._changing:
            self._orders = [
                {
                    "targets": targets[first::step],
                    "tls": tls,
                    "accepts_tls": self._setup.side is Role.PROD,
                    "rate_bytes_s": self._setup.rate_kbytes_s * 1000,
                }
                for first in range(step)
            ]
            for index in range(len(self._processes), step):
                self._processes.append(await self._start(index))
            for process, orders in zip(self._processes, self._orders, strict=True):
                await process.order(orders)

    async def traffic(self) -> Traffic:
        reports = [await process.ask() for process in self._processes]
        return Traffic(
            inward=self._past["inward"] + sum(report["inward"] for report in reports),
            outward=self._past["outward"] + sum(report["outward"] for report in reports),
            connections=sum(report["open"] for report in reports),
            refused=self._past["refused"] + sum(report["refused"] for report in reports),
            cipher=next((report["cipher"] for report in reports if report["cipher"]), None),
        )

    async def close(self) -> None:
        self._closing = True
        async with self._changing:
            for process in self._processes:
                await process.close()
        for listener in self._setup.listeners:
            listener.close()

    async def _start(self, index: int) -> RelayProcess:
        return await RelayProcess.start(self._shares[index], lambda reason: self._ended(index, reason))

    def _ended(self, index: int, reason: str) -> None:
        """A process has died: its connections are lost, the session is not."""
        task = asyncio.get_running_loop().create_task(self._restart(index, reason))
        self._restarting.add(task)
        task.add_done_callback(self._restarting.discard)

    async def _restart(self, index: int, reason: str) -> None:
        now = time.monotonic()
        often = len(self._restarts) == _MAX_RESTARTS and now - self._restarts[0] < _RESTART_WINDOW_S
        self._restarts.append(now)
        async with self._changing:
            if self._closing:
                return
            if often:
                self._setup.on_failure(f"{reason}, {_MAX_RESTARTS + 1} times within {_RESTART_WINDOW_S:g} s")
                return
            _LOG.error("session %s: %s; restarting it, both sides reconnect", self._setup.uid, reason)
            dead = self._processes[index]
            self._past.update({name: dead.report[name] for name in ("inward", "outward", "refused")})
            await dead.close()
            try:
                process = self._processes[index] = await self._start(index)
            except TunnelError as error:
                self._setup.on_failure(f"{reason}, and it could not be restarted: {error}")
                return
            try:
                await process.order(self._orders[index])
            except TunnelError:
                process.kill()  # if it has not died already: its end triggers the next restart
