"""One connection through a relay: accept, connect, authenticate, then move bytes both ways until both have ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from OpenSSL import SSL

from ministream.tunnel.proxy import HANDSHAKE_S
from ministream.tunnel.proxy._ends import PlainEnd, ProxyEnd, Wait
from ministream.tunnel.proxy._flow import Bucket, CopyFlow, Flow, SpliceFlow
from ministream.tunnel.proxy._sockets import dial, tune
from ministream.tunnel.proxy._tls import TlsEnd, TlsError, TruncatedError

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayRoute:
    """Where a listener's connections go, and who must be at the other end.

    `addresses` are (family, socket address) to try in turn. `tls` belongs to the accepted side where `accepts_tls`,
    else to the connecting one; the other side is plain. `peer` is the only certificate (DER) accepted.
    """

    addresses: Sequence[tuple[int, tuple[Any, ...]]]
    tls: SSL.Context | None
    peer: bytes | None
    accepts_tls: bool


@dataclass(kw_only=True, slots=True)
class ByteTotals:
    """What one relay process has carried. `inward` is towards the dialled side."""

    inward: int = 0
    outward: int = 0
    opened: int = 0
    refused: int = 0
    cipher: str | None = None
    flows: set[tuple[Flow, Flow]] = field(default_factory=set)

    def snapshot(self) -> dict[str, Any]:
        """Counters that include connections still open."""
        return {
            "inward": self.inward + sum(inward.moved for inward, _ in self.flows),
            "outward": self.outward + sum(outward.moved for _, outward in self.flows),
            "open": len(self.flows),
            "opened": self.opened,
            "refused": self.refused,
            "cipher": self.cipher,
        }


async def carry(
    accepted: socket.socket, route: RelayRoute, bucket: Bucket, totals: ByteTotals, known: Callable[[], None]
) -> None:
    """Serve one accepted connection to its end; closes every socket, with a reset if anything went wrong.

    `known` is called once the caller is authenticated. Raises OSError (TlsError included) with the reason.
    """
    sockets = [accepted]
    try:
        tune(accepted)
        near: ProxyEnd = PlainEnd(accepted)
        # The caller authenticates before this relay contacts anything behind it.
        if route.tls and route.accepts_tls:
            near = await _secure(accepted, route, totals)
        known()
        dialled = await dial(route.addresses)
        sockets.append(dialled)
        far: ProxyEnd = PlainEnd(dialled)
        if route.tls and not route.accepts_tls:
            far = await _secure(dialled, route, totals)
        totals.opened += 1
        await _exchange(near, far, bucket, totals)
    except BaseException:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        raise
    finally:
        for sock in sockets:
            sock.close()


async def _secure(sock: socket.socket, route: RelayRoute, totals: ByteTotals) -> TlsEnd:
    assert route.tls is not None
    end = TlsEnd(sock, route.tls, accepts=route.accepts_tls)
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            while (wait := end.handshake()) is not Wait.DONE:
                await _ready(sock, wait)
        if end.certificate() != route.peer:
            raise TlsError("the peer's certificate is not the one of this session")
    except TruncatedError:
        totals.refused += end.heard  # one that leaves without a byte is a probe, as the consumer's gateway makes
        raise
    except BaseException:
        totals.refused += 1
        raise
    totals.cipher = end.cipher
    return end


async def _ready(sock: socket.socket, wait: Wait) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (loop.add_reader, loop.remove_reader) if wait is Wait.READ else (loop.add_writer, loop.remove_writer)
    add(sock, wake)
    try:
        await ready
    finally:
        remove(sock)


async def _exchange(near: ProxyEnd, far: ProxyEnd, bucket: Bucket, totals: ByteTotals) -> None:
    kind = SpliceFlow if isinstance(near, PlainEnd) and isinstance(far, PlainEnd) else CopyFlow
    inward = kind(near, far, bucket)
    try:
        outward = kind(far, near, bucket)
    except OSError:
        inward.close()
        raise
    pair = (inward, outward)
    totals.flows.add(pair)
    pumps = [_Pump(flow, bucket) for flow in pair]
    try:
        await asyncio.gather(*(pump.finished for pump in pumps))
    finally:
        for pump in pumps:
            pump.stop()
        totals.flows.discard(pair)
        totals.inward += inward.moved
        totals.outward += outward.moved
        for flow in pair:
            flow.close()


class _Pump:
    """Steps one flow whenever its awaited event occurs."""

    def __init__(self, flow: Flow, bucket: Bucket) -> None:
        self._flow = flow
        self._bucket = bucket
        self._loop = asyncio.get_running_loop()
        self._armed: Wait | None = None
        self._timer: asyncio.Handle | None = None
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_soon(self._step)

    def stop(self) -> None:
        """Forget all callbacks; the flow may be closed then."""
        self._arm(None)
        if self._timer is not None:
            self._timer.cancel()
        self.finished.cancel()

    def _step(self) -> None:
        if self.finished.done():
            return
        try:
            self._flow.step()
        except OSError as error:
            self._arm(None)
            self.finished.set_exception(error)
            return
        wait = self._flow.wait
        self._arm(wait if wait in (Wait.READ, Wait.WRITE) else None)
        if wait is Wait.DONE:
            self.finished.set_result(None)
        elif wait is Wait.TURN:
            self._timer = self._loop.call_soon(self._step)
        elif wait is Wait.RATE:
            self._timer = self._loop.call_later(self._bucket.pause_s(), self._step)

    def _arm(self, wait: Wait | None) -> None:
        if wait is self._armed:
            return
        if self._armed is Wait.READ:
            self._loop.remove_reader(self._flow.source.sock)
        elif self._armed is Wait.WRITE:
            self._loop.remove_writer(self._flow.sink.sock)
        if wait is Wait.READ:
            self._loop.add_reader(self._flow.source.sock, self._step)
        elif wait is Wait.WRITE:
            self._loop.add_writer(self._flow.sink.sock, self._step)
        self._armed = wait
