"""The built-in data server: splice(2) for plain bytes, TLS 1.3 with per-session certificates between two relays."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ministream.tunnel.certificates import check_peer, make_session_pair
from ministream.tunnel.proxy import SESSION_DAYS, Addresses, Setup, Traffic
from ministream.tunnel.proxy._process import RelayProcess
from ministream.tunnel.role import Role

_MAX_PROCESSES = 8


class Proxy:
    """Listeners are dealt to as many processes as there are cores; a rate limit is kept by one process."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._pair = make_session_pair(SESSION_DAYS)
        cores = 1 if setup.rate_kbytes_s else min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
        self._shares = [setup.listeners[first::cores] for first in range(min(cores, len(setup.listeners)))]
        self._processes: list[RelayProcess] = []

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
        for share in self._shares[len(self._processes) :]:
            self._processes.append(await RelayProcess.start(share, self._setup.on_failure))
        step = len(self._shares)
        for first, process in enumerate(self._processes):
            await process.order(
                {
                    "targets": targets[first::step],
                    "tls": tls,
                    "accepts_tls": self._setup.side is Role.PROD,
                    "rate_bytes_s": self._setup.rate_kbytes_s * 1000,
                }
            )

    async def traffic(self) -> Traffic:
        reports = [await process.ask() for process in self._processes]
        return Traffic(
            inward=sum(report["inward"] for report in reports),
            outward=sum(report["outward"] for report in reports),
            connections=sum(report["open"] for report in reports),
            refused=sum(report["refused"] for report in reports),
            cipher=next((report["cipher"] for report in reports if report["cipher"]), None),
        )

    async def close(self) -> None:
        for process in self._processes:
            await process.close()
        for listener in self._setup.listeners:
            listener.close()
