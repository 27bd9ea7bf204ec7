"""The two kinds of end that a connection through a relay may have: a TCP socket, or TLS over one. Never blocking."""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl
from typing import Any, Protocol

CHUNK = 256 * 1024


class Wait(enum.Enum):
    """Why a flow stopped moving bytes."""

    READ = "until its source has bytes"
    WRITE = "until its sink takes bytes"
    RATE = "until its rate limit allows more"
    TURN = "for its next turn"
    DONE = "for nothing: the source has ended and the sink knows"


class TruncatedError(OSError):
    """A TLS stream ended without saying so: what arrived may not be all."""


class End(Protocol):
    """One end of a connection."""

    sock: socket.socket

    def read_into(self, buffer: memoryview) -> int | None:
        """Bytes read; 0 at the end of the stream, None if there are none yet."""

    def write(self, data: memoryview) -> int:
        """Bytes taken."""

    def flush(self) -> bool:
        """Whether everything taken has left for the kernel."""

    def finish(self) -> None:
        """Say that nothing more will be written; reading goes on."""


class PlainEnd:
    """A TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read_into(self, buffer: memoryview) -> int | None:
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            return None

    def write(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def flush(self) -> bool:
        return True

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)


class TlsEnd:
    """TLS over a TCP socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, accepts: bool) -> None:
        self.sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=accepts)
        self._raw = memoryview(bytearray(CHUNK))
        self._unsent = memoryview(b"")
        self._early = memoryview(b"")
        self._ended = False
        self._finished = False

    @property
    def cipher(self) -> str:
        """Protocol and cipher suite, after the handshake."""
        name, version, _ = self._tls.cipher() or ("none", "none", 0)
        return f"{version} {name}"

    def certificate(self) -> bytes | None:
        """The peer's certificate, DER."""
        return self._tls.getpeercert(binary_form=True)

    def handshake(self) -> Wait:
        """Go on with the handshake; DONE when it is complete. Raises ssl.SSLError when it fails."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                if not self.flush():
                    return Wait.WRITE
                if not self._receive():
                    return Wait.READ
            except ssl.SSLError:
                # The alert tells the peer why; nothing can be done if it cannot be sent.
                self.flush()
                raise
            else:
                return Wait.DONE if self.flush() else Wait.WRITE

    def read_into(self, buffer: memoryview) -> int | None:
        if self._early:
            taken = min(len(self._early), len(buffer))
            buffer[:taken] = self._early[:taken]
            self._early = self._early[taken:]
            return taken
        while True:
            filled = self._decrypt(buffer)
            if filled or self._ended:
                return filled
            if not self._receive():
                return None

    def write(self, data: memoryview) -> int:
        if not self.flush():
            return 0
        self._tls.write(data)
        self.flush()
        return len(data)

    def flush(self) -> bool:
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return True
                self._unsent = memoryview(self._outgoing.read())
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[sent:]

    def finish(self) -> None:
        """Send close_notify. OpenSSL looks for the peer's at once, and must find no record of ours still unread."""
        if self._finished:
            return
        self._finished = True
        early = [bytes(self._early)]
        buffer = memoryview(bytearray(CHUNK))
        while not self._ended and (count := self._decrypt(buffer)):
            early.append(bytes(buffer[:count]))
        self._early = memoryview(b"".join(early))
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self.flush()

    def _decrypt(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            try:
                count: Any = self._tls.read(len(buffer) - filled, buffer[filled:])
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                count = 0
            if not count:
                self._ended = True
                break
            filled += count
        return filled

    def _receive(self) -> bool:
        try:
            count = self.sock.recv_into(self._raw)
        except BlockingIOError:
            return False
        if not count:
            raise TruncatedError("the TLS peer closed its socket without close_notify")
        self._incoming.write(self._raw[:count])
        return True
