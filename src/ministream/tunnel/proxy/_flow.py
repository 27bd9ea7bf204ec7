"""Moving bytes between the two ends of a relayed connection: one direction at a time, never blocking, bounded memory.

Plain to plain goes through a kernel pipe (splice(2)), so the bytes never enter this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import Protocol

from ministream.tunnel.proxy._ends import CHUNK, ProxyEnd, Wait

_PIPE_BYTES = 1024 * 1024
# A flow yields to the others of its process after this many chunks.
_BURST = 8
# After a short read, more data is rarely ready: waiting costs less than another read.
_SMALL = 16 * 1024

# Buffers of flows that hold no bytes. The one used last is the next: it is still in the core's cache, and a thousand
# idle connections take no more memory than one.
_spare: list[memoryview] = []


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

    source: ProxyEnd
    sink: ProxyEnd
    wait: Wait
    moved: int

    def step(self) -> None:
        """Move what can be moved and set `wait`. Raises OSError when either end has failed."""

    def close(self) -> None:
        """Release what the flow itself holds, not the ends."""


class SpliceFlow:
    """Plain to plain, inside the kernel."""

    def __init__(self, source: ProxyEnd, sink: ProxyEnd, bucket: Bucket) -> None:
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
        small = False
        for _ in range(_BURST):
            if small:
                return Wait.READ
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
                small = self._held < min(allowed, _SMALL)
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
    """Any end to any end, through one buffer that it has only while there are bytes in it."""

    def __init__(self, source: ProxyEnd, sink: ProxyEnd, bucket: Bucket) -> None:
        self.source, self.sink, self._bucket = source, sink, bucket
        self.wait = Wait.READ
        self.moved = 0
        self._buffer: memoryview | None = None
        self._held = memoryview(b"")
        self._ended = False

    def step(self) -> None:
        self.wait = self._move()

    def _move(self) -> Wait:
        small = False
        for _ in range(_BURST):
            if not self._deliver():
                return Wait.WRITE
            if self._ended:
                return Wait.DONE
            if small:
                return Wait.READ
            allowed = self._bucket.grant(CHUNK)
            if not allowed:
                return Wait.RATE
            count = self._fetch(allowed)
            if count is None:
                return Wait.READ
            small = count < min(allowed, _SMALL)
            if count:
                self._bucket.spend(count)
            else:
                self._ended = True
                self.sink.finish()
        return Wait.TURN

    def _deliver(self) -> bool:
        """Whether everything that was read has left for the kernel."""
        while self._held:
            sent = self.sink.write(self._held)
            if not sent:
                return False
            self._held = self._held[sent:]
            self.moved += sent
        self.close()
        return self.sink.flush()

    def _fetch(self, allowed: int) -> int | None:
        self._buffer = _spare.pop() if _spare else memoryview(bytearray(CHUNK))
        count = self.source.read_into(self._buffer[:allowed])
        if count:
            self._held = self._buffer[:count]
        else:
            self.close()
        return count

    def close(self) -> None:
        if self._buffer is not None:
            _spare.append(self._buffer)
            self._buffer = None
