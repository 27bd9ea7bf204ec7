"""What the data servers that are configured by a file have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ministream.tunnel.certificates import check_peer, make_session_pair
from ministream.tunnel.proxy import SESSION_DAYS, Addresses, Setup, Traffic
from ministream.tunnel.proxy._program import Program


class ConfiguredProxy:
    """One program per session, started anew with a new file when the targets change; subclasses write the file."""

    program: str
    ready: str

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._running: Program | None = None
        self._protocol: str | None = None

    @property
    def secures_itself(self) -> bool:
        return False

    def arguments(self) -> Sequence[str]:
        """The program's command line after its name."""
        raise NotImplementedError

    def files(self, targets: Sequence[Addresses], peer: bytes | None) -> Sequence[bytes]:
        """The files of `_program.path`, the configuration first; built from validated values only."""
        raise NotImplementedError

    async def forward(self, targets: Sequence[Addresses], peer: bytes | None) -> None:
        files = self.files(targets, peer)
        self._protocol = "TLSv1.3" if peer is not None else None
        if self._running is not None:
            await self._running.close()
            self._running = None
        self._running = await Program.start(self.setup, self.program, self.arguments(), files=files, ready=self.ready)

    async def traffic(self) -> Traffic:
        return Traffic(cipher=self._protocol)

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

    def configuration(self, targets: Sequence[Addresses], *, secure: bool) -> str:
        """The configuration's text."""
        raise NotImplementedError


def address_text(family_and_address: tuple[int, tuple[Any, ...]]) -> str:
    """A resolved address as configuration text: digits, dots, colons and brackets only."""
    _, (host, port, *_) = family_and_address
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"
