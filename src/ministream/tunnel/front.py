"""The TLS 1.3 in front of gRPC: gRPC for Python can neither demand a TLS version nor ask for a certificate without
insisting on one, and drops a caller that has none without a word.

Connections are decrypted here and handed to the gRPC server over a Unix socket in a directory that only this user
can enter. Every connection is dialled from a socket with a name of its own, which gRPC gives as the caller's
address: that is how a call is traced to the certificate it came with.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ministream import log
from ministream.errors import TunnelError
from ministream.tunnel import certificates
from ministream.tunnel.address import Endpoint
from ministream.tunnel.credentials import Credentials

_HANDSHAKE_S = 10.0
_CHUNK = 1 << 16
_MAX_CONNECTIONS = 512
# Callers without a certificate who wait for their refusal, or present a token.
_MAX_STRANGERS = 64
_STRANGER_S = 10.0
_DIRECTORY_CHARS = 80

_LOG = log.get(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who is at the other end of a TLS connection: the certificate's name and serial number, None without one."""

    name: str | None
    serial: int | None
    address: str


class Front:
    """Listens for TLS on behalf of a gRPC server that listens on `backend`."""

    def __init__(self, credentials: Credentials, *, strangers_stay: bool) -> None:
        """Without `strangers_stay`, a connection without a certificate ends after a few seconds."""
        self._context = _server_context(credentials)
        self._strangers_stay = strangers_stay
        self._directory = Path(tempfile.mkdtemp(prefix="s2cs-", dir=_short_directory()))
        self._callers: dict[str, Caller] = {}
        self._numbers = itertools.count()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def backend(self) -> str:
        """Where the gRPC server is to listen."""
        return f"unix:{self._directory / 'grpc'}"

    def caller(self, peer: str) -> Caller | None:
        """The caller behind the peer address that gRPC gives; None for one that did not come through here."""
        return self._callers.get(peer)

    async def start(self, endpoint: Endpoint) -> Endpoint:
        """Listen; returns the address with its port. Raises TunnelError when it cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._serve,
                endpoint.host,
                endpoint.port,
                ssl=self._context,
                ssl_handshake_timeout=_HANDSHAKE_S,
                limit=_CHUNK,
            )
        except OSError as error:
            raise TunnelError(f"control address {endpoint} cannot be had ({error.strerror}): name another") from error
        return Endpoint(endpoint.host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, end every connection, take the directory away."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            caller = _caller_of(writer)
            strangers = sum(known.name is None for known in self._callers.values())
            if len(self._callers) >= _MAX_CONNECTIONS or (caller.name is None and strangers >= _MAX_STRANGERS):
                _LOG.warning("connection from %s refused: too many", caller.address)
                return
            patience = None if caller.name is not None or self._strangers_stay else _STRANGER_S
            with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
                async with asyncio.timeout(patience):
                    await self._carry(caller, reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _carry(self, caller: Caller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = self._directory / f"c{next(self._numbers)}"
        peer = f"unix:{name}"
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inner.setblocking(False)
            inner.bind(str(name))
            self._callers[peer] = caller
            await asyncio.get_running_loop().sock_connect(inner, str(self._directory / "grpc"))
            name.unlink()
            inner_reader, inner_writer = await asyncio.open_unix_connection(sock=inner, limit=_CHUNK)
            ways = [
                asyncio.create_task(_copy(reader, inner_writer)),
                asyncio.create_task(_copy(inner_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                inner_writer.transport.abort()
        finally:
            self._callers.pop(peer, None)
            inner.close()


def _short_directory() -> str:
    """The temporary directory, or /tmp where a socket's name would be too long for the kernel."""
    directory = tempfile.gettempdir()
    return directory if len(directory) < _DIRECTORY_CHARS else "/tmp"  # noqa: S108 - mkdtemp makes it private


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def _caller_of(writer: asyncio.StreamWriter) -> Caller:
    host = str(writer.get_extra_info("peername")[0])
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if der is None:
        return Caller(name=None, serial=None, address=host)
    certificate = x509.load_der_x509_certificate(der)
    name, _ = certificates.names_of(certificate)
    return Caller(name=name, serial=certificate.serial_number, address=host)


def _server_context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    # Optional here, so that a caller without one can be told what is missing; auth.py insists.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=credentials.ca.decode())
    context.load_cert_chain(credentials.directory / "server.crt", credentials.directory / "server.key")
    return context
