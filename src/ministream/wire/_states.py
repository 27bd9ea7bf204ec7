"""The transition tables of both ends. A message that a table lacks is a ProtocolError."""

from __future__ import annotations

import enum
from typing import TypeAlias

from ministream.model import FrameKind
from ministream.wire.native import (
    Again,
    Bye,
    End,
    FrameHeader,
    Grant,
    Heartbeat,
    Hello,
    Message,
    Omission,
    Reason,
    ScanInfo,
    Written,
)

Trigger: TypeAlias = type[Message] | FrameKind | Reason


def trigger(message: Message) -> Trigger:
    """The key of `message` in a transition table: a frame's kind, an orderly `Bye`'s reason, else its type."""
    match message:
        case FrameHeader(kind=kind):
            return kind
        case Bye(reason=Reason.DONE):
            return Reason.DONE
        case _:
            return type(message)


class SenderState(enum.Enum):
    """State of a sender."""

    WAITING = enum.auto()  # no receiver is connected
    STREAMING = enum.auto()  # a receiver is served
    DONE = enum.auto()  # the receiver has confirmed the end
    OVER = enum.auto()  # one end has left early


SENDER_TURNS: dict[SenderState, dict[Trigger, SenderState]] = {
    SenderState.WAITING: {
        Hello: SenderState.STREAMING,
        Grant: SenderState.WAITING,
        Again: SenderState.WAITING,
        Written: SenderState.WAITING,
        Heartbeat: SenderState.WAITING,
        Reason.DONE: SenderState.DONE,
        Bye: SenderState.OVER,
    },
    SenderState.STREAMING: {
        Hello: SenderState.STREAMING,
        Grant: SenderState.STREAMING,
        Again: SenderState.STREAMING,
        Written: SenderState.STREAMING,
        Heartbeat: SenderState.STREAMING,
        Reason.DONE: SenderState.DONE,
        Bye: SenderState.OVER,
    },
    SenderState.DONE: {
        Hello: SenderState.DONE,
        Grant: SenderState.DONE,
        Written: SenderState.DONE,
        Heartbeat: SenderState.DONE,
        Reason.DONE: SenderState.DONE,
    },
    SenderState.OVER: {},
}


class ReceiverState(enum.Enum):
    """State of a receiver's connection, or of the furthest one where a scan is striped over several."""

    APART = 0  # not connected
    GREETING = 1  # Hello is sent, ScanInfo comes next
    STREAMING = 2  # frames come
    ENDED = 3  # End has arrived; frames may still be missing or unused, and the outcome unknown
    OVER = 4  # the session has ended


RECEIVER_TURNS: dict[ReceiverState, dict[Trigger, ReceiverState]] = {
    ReceiverState.APART: {},
    ReceiverState.GREETING: {
        ScanInfo: ReceiverState.STREAMING,
        Heartbeat: ReceiverState.GREETING,
        Bye: ReceiverState.OVER,
    },
    ReceiverState.STREAMING: {
        **dict.fromkeys(FrameKind, ReceiverState.STREAMING),
        Omission: ReceiverState.STREAMING,
        End: ReceiverState.ENDED,
        Heartbeat: ReceiverState.STREAMING,
        Bye: ReceiverState.OVER,
    },
    # frames that were asked for again, or were lost with another connection, may follow the end
    ReceiverState.ENDED: {
        **dict.fromkeys(FrameKind, ReceiverState.ENDED),
        Omission: ReceiverState.ENDED,
        Heartbeat: ReceiverState.ENDED,
        Reason.DONE: ReceiverState.OVER,
        Bye: ReceiverState.OVER,
    },
    ReceiverState.OVER: {},
}
