"""The TLS 1.3 listener in front of gRPC: gRPC for Python can neither demand a TLS version nor ask for a certificate
without requiring one, and it drops a caller without one before sending a reason.

Connections are decrypted here and passed to the gRPC server over a Unix socket in a folder that only this user can
enter. Every such connection comes from a socket with a unique name, which gRPC reports as the caller's address:
this maps a call to the certificate of its connection.

A connection is a stranger's until its certificate, or its first authenticated call, identifies the caller. See
`docs/decisions/tunnel-tls-front.md`.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from ministream import log
from ministream.errors import ConfigError, TunnelError
from ministream.private import LockedFolder
from ministream.tunnel import certificates
from ministream.tunnel.address import Endpoint
from ministream.tunnel.credentials import Credentials, check_name
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.strangers import Strangers

_BACKLOG = 128
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_CHUNK = 1 << 16
_ACCEPT_AGAIN_S = 0.1
# Strangers: unfinished handshakes, and callers without a certificate until their first authenticated call.
_MAX_STRANGERS = 64
_MAX_STRANGERS_PER_ADDRESS = 32
_STRANGER_S = 10.0
_MAX_CONNECTIONS = 512
_MAX_PER_ADDRESS = 256
_MAX_PER_IDENTITY = 64
_IDLE_S = 900.0
_DIRECTORY_CHARS = 80

_LOG = log.get(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who is at the other end of a TLS connection: the certificate's name, serial number and end (UNIX seconds).

    All three are None without a certificate.
    """

    name: str | None
    serial: int | None
    address: str
    expires_s: float | None = None


@dataclass(kw_only=True, slots=True)
class _Held:
    """A connection after its handshake; `identity` None: still a stranger's."""

    caller: Caller
    limit: asyncio.Timeout
    task: asyncio.Task[None]
    identity: str | None = None

    def seen(self) -> None:
        """Bytes have moved: the idle time begins again."""
        if self.identity is not None:
            self.limit.reschedule(asyncio.get_running_loop().time() + _IDLE_S)


class TlsListener:
    """Listens for TLS on behalf of a gRPC server that listens on `backend`."""

    def __init__(self, credentials: Credentials) -> None:
        self._source = credentials.directory
        self._stamp = _stamp_of(credentials.directory)
        self._context = _server_context(credentials)
        self._folder = LockedFolder("s2cs-", _short_directory())
        self._numbers = itertools.count()
        self._strangers = Strangers(_MAX_STRANGERS, _MAX_STRANGERS_PER_ADDRESS)
        self._held: dict[str, _Held] = {}
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def backend(self) -> str:
        """Where the gRPC server is to listen."""
        return f"unix:{self._folder.path / 'grpc'}"

    def caller(self, peer: str) -> Caller | None:
        """The caller behind the peer address that gRPC gives; None for one that did not come through here."""
        held = self._held.get(peer)
        return held.caller if held else None

    def authenticated(self, peer: str, identity: str) -> None:
        """A call on this connection was authenticated: it leaves the strangers' places.

        Raises RefusedError (RESOURCE_EXHAUSTED) when the identity holds too many connections.
        """
        held = self._held.get(peer)
        if held is not None and held.identity is None:
            self._admit(held, identity)

    async def start(self, endpoint: Endpoint) -> Endpoint:
        """Listen; returns the address with its port. Raises TunnelError when it cannot be bound."""
        try:
            self._sockets = await _listen(endpoint)
        except OSError as error:
            number = error.errno or 0  # negative for a name that does not resolve
            cause = os.strerror(number) if number > 0 else str(error)
            text = f"cannot bind {endpoint} ({cause}): choose another address or port with --listen, --control"
            raise TunnelError(text) from error
        for listener in self._sockets:
            self._keep(self._accept(listener))
        return Endpoint(endpoint.host, self._sockets[0].getsockname()[1])

    def reload(self) -> Credentials | None:
        """Use renewed certificates for new connections. Returns them, None where nothing has changed.

        Raises ConfigError for files that do not fit together; the ones in use stay.
        """
        stamp = _stamp_of(self._source)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        credentials = Credentials.load(self._source)
        try:
            self._context = _server_context(credentials)
        except ssl.SSLError as error:
            raise ConfigError(f"{self._source}: server.crt and server.key do not fit: copy both again") from error
        return credentials

    async def close(self) -> None:
        """Stop listening, end every connection, remove the folder."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._sockets:
            listener.close()
        self._folder.remove()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:
                _LOG.warning("control port: cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            self._keep(self._serve(accepted, str(address[0])))

    async def _serve(self, accepted: socket.socket, address: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._strangers.enter(task, address, task.cancel)
        transport: asyncio.BaseTransport | None = None
        try:
            async with asyncio.timeout(_STRANGER_S) as limit:
                reader, writer = await _secured(accepted, self._context)
                transport = writer.transport
                held = _Held(caller=_caller_of(writer), limit=limit, task=task)
                if held.caller.name is not None:
                    self._admit(held, held.caller.name)
                await self._carry(held, reader, writer)
        except RefusedError as refusal:
            _LOG.warning("connection from %s rejected: %s", address, refusal)
        except (TimeoutError, OSError) as error:
            # scanners, probes, and peers that close without data: no action needed
            _LOG.debug("connection from %s ended: %s", address, error or "timed out")
        finally:
            self._strangers.leave(task)
            if transport is None:
                accepted.close()
            else:
                transport.abort()  # type: ignore[attr-defined]

    def _admit(self, held: _Held, identity: str) -> None:
        known = [other for other in self._held.values() if other.identity is not None]
        addresses = Counter(other.caller.address for other in known)
        if len(known) >= _MAX_CONNECTIONS or addresses[held.caller.address] >= _MAX_PER_ADDRESS:
            raise RefusedError(Code.RESOURCE_EXHAUSTED, "this server has reached its connection limit: try again later")
        if sum(other.identity == identity for other in known) >= _MAX_PER_IDENTITY:
            text = f"{identity!r} holds {_MAX_PER_IDENTITY} connections, the most allowed: close some"
            raise RefusedError(Code.RESOURCE_EXHAUSTED, text)
        held.identity = identity
        self._strangers.leave(held.task)
        held.seen()

    async def _carry(self, held: _Held, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = self._folder.path / f"c{next(self._numbers)}"
        peer = f"unix:{name}"
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inner.setblocking(False)
            inner.bind(str(name))
            self._held[peer] = held
            await asyncio.get_running_loop().sock_connect(inner, str(self._folder.path / "grpc"))
            name.unlink()
            inner_reader, inner_writer = await asyncio.open_unix_connection(sock=inner, limit=_CHUNK)
            ways = [
                asyncio.create_task(_copy(reader, inner_writer, held)),
                asyncio.create_task(_copy(inner_reader, writer, held)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # first, because a second cancellation, when the server stops, would end the wait
                inner_writer.transport.abort()
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._held.pop(peer, None)
            inner.close()


async def _listen(endpoint: Endpoint) -> list[socket.socket]:
    """One socket for each address of the name that this machine has, all on one port. Raises OSError."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    port = endpoint.port
    found = await loop.getaddrinfo(endpoint.host, port, type=socket.SOCK_STREAM)
    try:
        for number, (family, _, _, _, address) in enumerate(found):
            try:
                listener = socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
            except OSError as error:
                # /etc/hosts may name an address of a family that is switched off
                if error.errno not in _NOT_HERE or not (sockets or number + 1 < len(found)):
                    raise
                continue
            listener.setblocking(False)
            sockets.append(listener)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


async def _secured(
    accepted: socket.socket, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The TLS handshake. Raises OSError (ssl.SSLError included)."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_CHUNK)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=_STRANGER_S
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _stamp_of(directory: Path) -> tuple[int, ...]:
    """Changes whenever a certificate of the server is replaced; 0 for a file that is not there for a moment."""
    paths = [directory / name for name in ("ca.crt", "server.crt", "server.key")]
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


def _short_directory() -> str:
    """The temporary directory, or /tmp where there is none or a socket's name would be too long for the kernel."""
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError:
        return "/tmp"  # noqa: S108 - making a folder there says what is wrong
    return directory if len(directory) < _DIRECTORY_CHARS else "/tmp"  # noqa: S108 - mkdtemp makes it private


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: _Held) -> None:
    while data := await reader.read(_CHUNK):
        held.seen()
        writer.write(data)
        await writer.drain()


def _caller_of(writer: asyncio.StreamWriter) -> Caller:
    host = str(writer.get_extra_info("peername")[0])
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if der is None:
        return Caller(name=None, serial=None, address=host)
    certificate = x509.load_der_x509_certificate(der)
    name, _ = certificates.names_of(certificate)
    try:
        # Another authority's names could look like a token's (token:NAME), or be empty.
        check_name(name)
    except ConfigError as error:
        raise RefusedError(Code.UNAUTHENTICATED, f"certificate: {error}") from error
    expires_s = certificate.not_valid_after_utc.timestamp()
    return Caller(name=name, serial=certificate.serial_number, address=host, expires_s=expires_s)


def _server_context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    # Optional here, so that a caller without one gets a reason; auth.py requires it.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=credentials.ca.decode())
    context.load_cert_chain(credentials.directory / "server.crt", credentials.directory / "server.key")
    return context
