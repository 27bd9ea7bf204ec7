"""What the data servers that are configured by a file have in common."""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ministream.tunnel.certificates import check_peer, make_session_pair
from ministream.tunnel.proxy import SESSION_DAYS, Addresses, Setup, Traffic, _sockdiag
from ministream.tunnel.proxy._program import Program


class ConfiguredProxy(ABC):
    """One program per session, restarted with a new file when the targets change; subclasses write the file.

    `ready` in its output means that it serves; `ended` matches what it says when a connection ends, with groups
    `inward` and `outward`, the payload's bytes.
    """

    limits_rate = False
    program: str
    ready: str
    ended: re.Pattern[str]

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._carried = {"inward": 0, "outward": 0}
        self._running: Program | None = None
        self._protocol: str | None = None

    @property
    def secures_itself(self) -> bool:
        return False

    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """The program's command line after its name."""

    @abstractmethod
    def files(self, targets: Sequence[Addresses], peer: bytes | None) -> Sequence[bytes]:
        """The files of `_program.path`, the configuration first; built from validated values only."""

    async def forward(self, targets: Sequence[Addresses], peer: bytes | None) -> None:
        files = self.files(targets, peer)
        self._protocol = "TLSv1.3" if peer is not None else None
        if self._running is not None:
            await self._running.close()
            self._running = None
        self._running = await Program.start(
            self.setup, self.program, self.arguments(), files=files, ready=self.ready, hear=self._hear
        )

    async def traffic(self) -> Traffic:
        """Ended connections as the program reported them; open ones as TCP counts the accepted side, with TLS."""
        now = _sockdiag.Counted()
        with contextlib.suppress(OSError):  # without kernel counters, connections count when they end
            now = _sockdiag.count(self.setup.listeners)
        return Traffic(
            inward=self._carried["inward"] + now.received,
            outward=self._carried["outward"] + now.acknowledged,
            connections=now.connections,
            cipher=self._protocol,
        )

    def _hear(self, line: str) -> None:
        if told := self.ended.search(line):
            for way in self._carried:
                self._carried[way] += int(told[way])

    async def close(self) -> None:
        if self._running is not None:
            await self._running.close()
            self._running = None
        for listener in self.setup.listeners:
            listener.close()


class CertifiedProxy(ConfiguredProxy):
    """A program that does TLS with certificates: interchangeable with the built-in relay on either side."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._pair = make_session_pair(SESSION_DAYS)

    @property
    def offer(self) -> bytes:
        """This side's session certificate."""
        return self._pair.certificate

    def files(self, targets: Sequence[Addresses], peer: bytes | None) -> Sequence[bytes]:
        """Configuration, this side's certificate and key, the other side's certificate."""
        configuration = self.configuration(targets, secure=peer is not None).encode()
        if peer is None:
            return [configuration]
        return [configuration, self._pair.certificate + self._pair.key, check_peer(peer).encode()]

    @abstractmethod
    def configuration(self, targets: Sequence[Addresses], *, secure: bool) -> str:
        """The configuration's text."""


def address_text(family_and_address: tuple[int, tuple[Any, ...]]) -> str:
    """A resolved address as configuration text: digits, dots, colons and brackets only."""
    _, (host, port, *_) = family_and_address
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"
