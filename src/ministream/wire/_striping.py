"""The connections over which a sender serves one receiver, and which frames each of them has in transit."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ministream.errors import ProtocolError


@dataclass(slots=True)
class _StreamConnection:
    """`lost` connections took this stream's place before; `transit` are the frames that have not arrived, in order."""

    peer: bytes
    lost: int
    sent_at: float
    arrived: int = 0
    transit: deque[int] = field(default_factory=deque)


class Striping:
    """Spreads the frames of a scan over a receiver's connections: each goes where the fewest are in transit.

    So a slow connection gets fewer frames. What was in transit over a connection that is lost goes out again over the
    others. `cursor` is the first frame that has never been sent to this receiver.
    """

    def __init__(self) -> None:
        self.cursor = 0
        self.retransmitted = 0
        self._most = 0  # beyond every frame that was ever sent
        self._again: list[int] = []  # a heap
        self._open: dict[int, _StreamConnection] = {}
        self._heeded: dict[bytes, int] = {}  # also connections that are lost and not replaced
        self._ended_over: int | None = None

    @property
    def peers(self) -> tuple[bytes, ...]:
        """The connections, the first stream's first."""
        return tuple(self._open[stream].peer for stream in sorted(self._open))

    @property
    def ended(self) -> bool:
        """Whether the end of the scan was sent, over a connection that is not lost."""
        return self._ended_over is not None

    def heeds(self, peer: bytes) -> bool:
        """Whether `peer` is the newest connection of its stream; what it sent before it was lost still counts."""
        return peer in self._heeded

    def others(self, stream: int) -> bool:
        """Whether a connection of another stream is open."""
        return bool(self._open.keys() - {stream})

    def restart(self, cursor: int) -> None:
        """Forget every connection; the receiver wants the frames from `cursor` on."""
        self._open.clear()
        self._heeded.clear()
        self._again.clear()
        self._ended_over = None
        self.cursor = cursor

    def open(self, stream: int, peer: bytes, lost: Sequence[int], now: float) -> None:
        """A connection more, in the place of an earlier one of its `stream`."""
        self._close(stream)
        self._heeded = {other: number for other, number in self._heeded.items() if number != stream}
        self._heeded[peer] = stream
        self._open[stream] = _StreamConnection(peer, lost[stream] if stream < len(lost) else 0, now)

    def close(self, peer: bytes, *, heed: bool = True) -> None:
        """The connection is lost, or to be ignored from now on."""
        stream = self._heeded.get(peer)
        if stream is not None and stream in self._open and self._open[stream].peer == peer:
            self._close(stream)
        if not heed:
            self._heeded.pop(peer, None)

    def forget(self, lost: Sequence[int]) -> None:
        """The receiver says how many connections of each stream have ended."""
        for stream, count in enumerate(lost):
            if stream in self._open and self._open[stream].lost < count:
                self._close(stream)

    def confirm(self, arrived: Sequence[int], lost: Sequence[int]) -> None:
        """The receiver says how many frames came over each stream's newest connection. Raises ProtocolError if more
        than were sent.
        """
        for stream, (count, ended) in enumerate(zip(arrived, lost, strict=False)):
            connection = self._open.get(stream)
            if connection is None or connection.lost != ended:
                continue  # said of another connection
            if count - connection.arrived > len(connection.transit):
                raise ProtocolError(f"{count} frames arrived over stream {stream}, fewer were sent")
            while connection.arrived < count:
                connection.transit.popleft()
                connection.arrived += 1

    def ask(self, seq: int) -> None:
        """Send a frame again; one that will be sent anyway needs nothing."""
        if seq < self.cursor:
            heapq.heappush(self._again, seq)

    def due(self, first: int, stop: int, now: float) -> Iterator[tuple[bytes, int]]:
        """The frames to be sent now, out of [first, stop): connection and number."""
        while self._open and ((seq := self._next(first, stop)) is not None):
            connection = min(self._open.values(), key=lambda one: len(one.transit))
            connection.transit.append(seq)
            connection.sent_at = now
            self.retransmitted += seq < self._most
            self._most = max(self._most, seq + 1)
            yield connection.peer, seq

    def end(self, stop: int, now: float) -> bytes | None:
        """Where to send the end of the scan, once every frame below `stop` is sent; None while that is not due."""
        if not self._open or self.ended or self._again or self.cursor < stop:
            return None
        self._ended_over, connection = min(self._open.items(), key=lambda one: len(one[1].transit))
        connection.sent_at = now
        return connection.peer

    def idle(self, since: float) -> list[bytes]:
        """The connections over which nothing was sent after `since`."""
        return [one.peer for one in self._open.values() if one.sent_at <= since]

    def sent(self, peer: bytes, now: float) -> None:
        """Something was sent over this connection."""
        for one in self._open.values():
            if one.peer == peer:
                one.sent_at = now

    def idle_since(self) -> float:
        """When the connection that was idle longest sent something; infinite without one."""
        return min((one.sent_at for one in self._open.values()), default=float("inf"))

    def _next(self, first: int, stop: int) -> int | None:
        while self._again and self._again[0] < first:
            heapq.heappop(self._again)  # used meanwhile
        if self._again:
            seq = heapq.heappop(self._again)
            while self._again and self._again[0] == seq:
                heapq.heappop(self._again)  # asked for twice
            return seq
        if self.cursor < stop:
            self.cursor += 1
            return self.cursor - 1
        return None

    def _close(self, stream: int) -> None:
        connection = self._open.pop(stream, None)
        if connection is None:
            return
        for seq in connection.transit:
            self.ask(seq)
        if self._ended_over == stream:
            self._ended_over = None
