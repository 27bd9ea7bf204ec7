"""One of the connections over which a receiver's session takes its scan."""

from __future__ import annotations

from dataclasses import dataclass, field

from ministream.wire import native
from ministream.wire._states import ReceiverState
from ministream.wire.native import Bye, Part, Reason


@dataclass(slots=True)
class ReceiverStream:
    """One of the connections of a session, and those that took its place before."""

    connected_at: float
    heard_at: float
    sent_at: float
    state: ReceiverState = ReceiverState.APART
    made: int = 0  # connections so far
    arrived: int = 0  # frames that came over this connection; 0 without one
    resume: int = 0  # what this connection's Hello said
    departed: bool = False  # this end has said Bye, on this connection, before the stream's end
    outbox: list[tuple[Part, ...]] = field(default_factory=list)

    @property
    def is_apart(self) -> bool:
        """Whether there is no connection."""
        return self.state is ReceiverState.APART

    def end(self) -> None:
        """The connection is gone, or will be."""
        self.state = ReceiverState.APART
        self.arrived = 0

    @property
    def lost(self) -> int:
        """Connections that have ended."""
        return self.made - (not self.is_apart)

    @property
    def last_sign_at(self) -> float:
        """When this connection last showed that it is alive."""
        return max(self.connected_at, self.heard_at)

    def begin(self, now: float, resume: int) -> None:
        """A connection is being made; its Hello will say `resume`."""
        self.state = ReceiverState.GREETING
        self.connected_at, self.resume = now, resume
        self.made += 1
        self.arrived = 0
        self.departed = False

    def depart(self, reason: Reason, text: str) -> None:
        """Say Bye, unless the connection has ended."""
        if self.state not in (ReceiverState.APART, ReceiverState.OVER):
            self.outbox.append((native.encode(Bye(reason=reason, text=native.line(text))),))
            self.departed = True
