"""The native stream's two ends as pure state machines: messages in, messages and events out.

They have no sockets, threads or clocks; the time is passed in. The driver of either end does the same:
pass in received messages (`receive`), send what is due (`outgoing`), check the timeouts (`check`), and sleep
no longer than `wait_s`.

Every frame of a scan, dark, flat or projection, has a number `seq` without gaps. The receiver grants credit by
absolute numbers; the sender keeps what is not acknowledged. When a connection breaks, the receiver makes a new one
and names the first frame it misses, so nothing is lost and nothing arrives twice. Every header is covered by a
checksum, and holds that of its payload. A damaged payload is requested again on the same connection, a damaged header
on a new one. Both ends compare their totals at the end. The end is confirmed both ways: `End`, then `Written` and
`Bye` (done) from the receiver when everything is used and the volume written, then `Bye` (done) from the sender.

Either end may be restarted: a receiver reports which frames it `held` before, a producer skips those that its
receiver has.

Receivers may share the rows of a scan: each then has a separate stream, and `SenderBands` keeps them in step.
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

__all__ = [
    "MAX_FRAMES_HELD",
    "Arrived",
    "AskedAgain",
    "Ended",
    "Interrupted",
    "Joined",
    "Lost",
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
