"""The native stream's two ends as pure state machines: messages in, messages and events out.

They know no sockets, no threads and no clock but the time they are given. A driver does, for either end, the same:
pass on what comes (`receive`), send what is due (`outgoing`), ask after what has not happened (`check`), and sleep
no longer than `wait_s`.

Every frame of a scan, dark, flat or projection, has a number `seq` without gaps. The receiver grants credit by
absolute numbers; the sender keeps what is not acknowledged. When a connection breaks, the receiver makes a new one
and says from which frame on it wants to hear; so nothing is lost and nothing arrives twice. Every header is under a
checksum, and holds that of its payload. A damaged payload is asked for again on the same connection, a damaged header
on a new one. Both ends compare their totals at the end. The end is confirmed both ways: `End`, then `Written` and
`Bye` (done) from the receiver when everything is used and the volume written, then `Bye` (done) from the sender.

Either end may be started again: a receiver says which frames it `held` before, a producer skips those that its
receiver has.

Receivers may share the rows of a scan: each then has a stream of its own, and `SenderBands` keeps them in step.
"""

from ministream.wire._bands import SenderBands
from ministream.wire._events import (
    MAX_FRAMES_HELD,
    Arrived,
    AskedAgain,
    Ended,
    Interrupted,
    Joined,
    Lost,
    Omitted,
    Patience,
    ReceiverEvent,
    Refused,
    SenderEvent,
    Stalled,
    TurnedAway,
)
from ministream.wire._receiver_session import ReceiverSession
from ministream.wire._sender_session import SenderSession
from ministream.wire._states import ReceiverState, SenderState
from ministream.wire._store import FrameStore, MemoryStore

__all__ = [
    "MAX_FRAMES_HELD",
    "Arrived",
    "AskedAgain",
    "Ended",
    "FrameStore",
    "Interrupted",
    "Joined",
    "Lost",
    "MemoryStore",
    "Omitted",
    "Patience",
    "ReceiverEvent",
    "ReceiverSession",
    "ReceiverState",
    "Refused",
    "SenderBands",
    "SenderEvent",
    "SenderSession",
    "SenderState",
    "Stalled",
    "TurnedAway",
]
