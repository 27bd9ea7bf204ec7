"""Which message may come when: the transition tables of both ends. What a table lacks is a ProtocolError."""

from __future__ import annotations

import enum
from typing import TypeAlias

from ministream.model import FrameKind
from ministream.wire.native import Bye, End, FrameHeader, Grant, Heartbeat, Hello, Message, Reason, ScanInfo

Trigger: TypeAlias = type[Message] | FrameKind | Reason


def trigger(message: Message) -> Trigger:
    """What `message` is in a table of transitions: a frame's kind, an orderly `Bye`'s reason, else its type."""
    match message:
        case FrameHeader(kind=kind):
            return kind
        case Bye(reason=Reason.DONE):
            return Reason.DONE
        case _:
            return type(message)


class SenderState(enum.Enum):
    """Where a sender stands with its receiver."""

    WAITING = enum.auto()  # nobody is connected
    STREAMING = enum.auto()  # a receiver is served
    DONE = enum.auto()  # the receiver has confirmed the end
    OVER = enum.auto()  # one end has left early


SENDER_TURNS: dict[SenderState, dict[Trigger, SenderState]] = {
    SenderState.WAITING: {
        Hello: SenderState.STREAMING,
        Grant: SenderState.WAITING,
        Heartbeat: SenderState.WAITING,
        Reason.DONE: SenderState.DONE,
        Bye: SenderState.OVER,
    },
    SenderState.STREAMING: {
        Hello: SenderState.STREAMING,
        Grant: SenderState.STREAMING,
        Heartbeat: SenderState.STREAMING,
        Reason.DONE: SenderState.DONE,
        Bye: SenderState.OVER,
    },
    SenderState.DONE: {
        Hello: SenderState.DONE,
        Grant: SenderState.DONE,
        Heartbeat: SenderState.DONE,
        Reason.DONE: SenderState.DONE,
    },
    SenderState.OVER: {},
}


class ReceiverState(enum.Enum):
    """Where a receiver stands with its producer."""

    APART = enum.auto()  # no connection
    GREETING = enum.auto()  # Hello is sent, ScanInfo due
    CALIBRATION = enum.auto()  # darks and flats, or the first projection, come next
    DATA = enum.auto()  # only projections come
    ENDED = enum.auto()  # the end is here, and perhaps not yet everything consumed
    OVER = enum.auto()  # nothing more to say or to hear


RECEIVER_TURNS: dict[ReceiverState, dict[Trigger, ReceiverState]] = {
    ReceiverState.APART: {},
    ReceiverState.GREETING: {
        ScanInfo: ReceiverState.CALIBRATION,
        Heartbeat: ReceiverState.GREETING,
        Bye: ReceiverState.OVER,
    },
    ReceiverState.CALIBRATION: {
        FrameKind.DARK: ReceiverState.CALIBRATION,
        FrameKind.FLAT: ReceiverState.CALIBRATION,
        FrameKind.PROJECTION: ReceiverState.DATA,
        End: ReceiverState.ENDED,
        Heartbeat: ReceiverState.CALIBRATION,
        Bye: ReceiverState.OVER,
    },
    ReceiverState.DATA: {
        FrameKind.PROJECTION: ReceiverState.DATA,
        End: ReceiverState.ENDED,
        Heartbeat: ReceiverState.DATA,
        Bye: ReceiverState.OVER,
    },
    ReceiverState.ENDED: {
        Heartbeat: ReceiverState.ENDED,
        Reason.DONE: ReceiverState.OVER,
        Bye: ReceiverState.OVER,
    },
    ReceiverState.OVER: {},
}
