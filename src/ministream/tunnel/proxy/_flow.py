"""Moving bytes between two sockets inside a relay: one direction at a time, never blocking, bounded memory.

Plain to plain goes through a kernel pipe (splice(2)), so the bytes never enter this process. Where one end is
TLS, `SSLObject` works on memory BIOs: it encrypts a whole buffer in one call, which the blocking `SSLSocket` cannot.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import socket
import ssl
import time
from typing import Any, Protocol

CHUNK = 256 * 1024
_PIPE_BYTES = 1024 * 1024
# A flow gives way to the others of its process after this many chunks.
_BURST = 8


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


class Bucket:
    """A token bucket over all flows of one session: at most `rate` bytes/s, bursts of a tenth of a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._depth = max(rate / 10, 1500.0)
        self._tokens = self._depth
        self._stamp = time.monotonic()

    def grant(self, wanted: int) -> int:
        """How many of the wanted bytes may move now."""
        if not self._rate:
            return wanted
        now = time.monotonic()
        self._tokens = min(self._depth, self._tokens + (now - self._stamp) * self._rate)
        self._stamp = now
        return max(0, min(wanted, int(self._tokens)))

    def spend(self, count: int) -> None:
        """These bytes have moved."""
        if self._rate:
            self._tokens -= count

    def pause_s(self) -> float:
        """How long until a useful amount may move again."""
        return self._depth / 4 / self._rate if self._rate else 0.0


class Flow(Protocol):
    """One direction of a connection."""

    source: End
    sink: End
    wait: Wait
    moved: int

    def step(self) -> None:
        """Move what can be moved and set `wait`. Raises OSError when either end has failed."""

    def close(self) -> None:
        """Give back what the flow itself holds, not the ends."""


class SpliceFlow:
    """Plain to plain, inside the kernel."""

    def __init__(self, source: End, sink: End, bucket: Bucket) -> None:
        self.source, self.sink, self._bucket = source, sink, bucket
        self.wait = Wait.READ
        self.moved = 0
        self._held = 0
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Where the user's pipe memory is used up, the default size works too, in smaller steps.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def step(self) -> None:
        self.wait = self._move()

    def _move(self) -> Wait:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        source, sink = self.source.sock.fileno(), self.sink.sock.fileno()
        for _ in range(_BURST):
            if not self._held:
                allowed = self._bucket.grant(_PIPE_BYTES)
                if not allowed:
                    return Wait.RATE
                try:
                    self._held = os.splice(source, self._in, allowed, flags=flags)
                except BlockingIOError:
                    return Wait.READ
                if not self._held:
                    self.sink.finish()
                    return Wait.DONE
                self._bucket.spend(self._held)
            try:
                while self._held:
                    sent = os.splice(self._out, sink, self._held, flags=flags)
                    self._held -= sent
                    self.moved += sent
            except BlockingIOError:
                return Wait.WRITE
        return Wait.TURN

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class CopyFlow:
    """Any end to any end, through one buffer."""

    def __init__(self, source: End, sink: End, bucket: Bucket) -> None:
        self.source, self.sink, self._bucket = source, sink, bucket
        self.wait = Wait.READ
        self.moved = 0
        self._buffer = memoryview(bytearray(CHUNK))
        self._held = self._buffer[:0]
        self._ended = False

    def step(self) -> None:
        self.wait = self._move()

    def _move(self) -> Wait:
        for _ in range(_BURST):
            while self._held:
                sent = self.sink.write(self._held)
                if not sent:
                    return Wait.WRITE
                self._held = self._held[sent:]
                self.moved += sent
            if not self.sink.flush():
                return Wait.WRITE
            if self._ended:
                return Wait.DONE
            allowed = self._bucket.grant(CHUNK)
            if not allowed:
                return Wait.RATE
            count = self.source.read_into(self._buffer[:allowed])
            if count is None:
                return Wait.READ
            if count:
                self._bucket.spend(count)
                self._held = self._buffer[:count]
            else:
                self._ended = True
                self.sink.finish()
        return Wait.TURN

    def close(self) -> None:
        self._held.release()
