"""What tests of the native wire over real sockets share: a sender in a thread, and what a receiver gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from ministream.errors import PeerError
from ministream.model import Frame
from ministream.transport import Arrived, Ended, Event, Lost, SenderReport
from ministream.transport.native import FrameReceiver, FrameSender


class Sending(threading.Thread):
    """Sends a whole scan from a thread of its own."""

    def __init__(self, sender: FrameSender, frames: list[Frame]) -> None:
        super().__init__()
        self._sender, self._frames = sender, frames
        self.report: SenderReport | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for frame in self._frames:
                self._sender.send(frame)
            self.report = self._sender.finish()
        except PeerError as error:
            self.error = error


def events_of(receiver: FrameReceiver, *, acknowledge: bool = True) -> Iterator[Event]:
    """Everything up to the last event; fails if nothing comes for 20 s."""
    while True:
        event = receiver.next(20)
        assert event is not None
        if acknowledge and isinstance(event, Arrived):
            receiver.ack(event.seq)
        yield event
        if isinstance(event, Ended | Lost):
            return
