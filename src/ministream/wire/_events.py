"""What both sessions share: how long they wait and what they report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ministream.model import Frame, FrameKind
from ministream.wire.native import Totals

# Otherwise small frames would be held by the hundred thousand, and each costs Python objects too.
MAX_FRAMES_HELD = 4096


def frames_within(budget_bytes: int, frame_bytes: int) -> int:
    """How many frames an end may hold: what the budget allows, but at least two, so that the stream flows."""
    return min(max(2, budget_bytes // frame_bytes), MAX_FRAMES_HELD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long one end waits for the other, in seconds.

    * `first_contact_s`: until the peer is there for the first time.
    * `silence_s`: without a message on one connection; then the connection counts as lost, the receiver connects
      again, and the producer lets another receiver take over. Over a link on which single frames take long, the
      receiver learns to wait longer.
    * `outage_s`: without a single valid message, over however many connections; then the peer is lost.
    * `stall_s`: without a frame from a producer that is connected and has credit; then the receiver reports it.
    * `heartbeat_s`: after so long without anything else to send, an end sends a heartbeat.
    """

    first_contact_s: float
    outage_s: float
    stall_s: float = 30.0
    silence_s: float = 5.0
    heartbeat_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """Frame `seq` of the stream, complete and valid; `at_s` is the UNIX time of its arrival, where that is known."""

    seq: int
    frame: Frame
    at_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """Frame `seq` is bad and is skipped; `reason` is a short, stable word, `text` names the frame."""

    seq: int
    reason: str
    text: str
    kind: FrameKind = FrameKind.PROJECTION


@dataclass(frozen=True, slots=True)
class Omitted:
    """The producer left out these projections by its policy `reason`, the last one at UNIX time `at_s`."""

    seq: int
    indices: tuple[int, ...]
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """Frame `seq` arrived damaged; the producer was asked to send it again."""

    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The scan is over, and every frame that the producer sent has arrived or was rejected."""

    totals: Totals


@dataclass(frozen=True, slots=True)
class Stalled:
    """The producer is connected and has credit, but has sent no frame for `seconds`: its source is slow, or hangs."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The scan ended early: the producer aborted, or was silent too long; no more frames will arrive.

    `announced` is what the producer was last known to have submitted; None where it never reported this.
    """

    text: str
    announced: Totals | None = None


ReceiverEvent: TypeAlias = Arrived | Refused | Omitted | AskedAgain | Ended | Stalled | Lost


@dataclass(frozen=True, slots=True)
class Joined:
    """A receiver is served from frame `resume` on, over a connection that is its `stream`."""

    resume: int
    stream: int = 0


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A peer was rejected and notified; `text` says why."""

    text: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The receiver ended its connection and will reconnect; `text` says why."""

    text: str


SenderEvent: TypeAlias = Joined | TurnedAway | Interrupted
