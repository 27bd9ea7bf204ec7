"""A receiver that is ten times too slow: the memory of both ends is bounded, and every projection accounted for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

from ministream.app.producer.accounting import AccountedSender
from ministream.app.producer.backlog import Backlog
from ministream.model import Frame, FrameKind, Scan
from ministream.transport import Arrived, Ended, Omitted
from ministream.transport.native import FrameReceiver, FrameSender

COUNT, BACKLOG, CREDIT = 400, 8, 4
SLOWER = 10
SCAN = Scan(scan_id="scan-1", rows=64, cols=256, projections=COUNT, flats=0, darks=0, dtype="<u2")
# The frame in the hands of each of four threads: the detector's, the sender's, its socket's and ZeroMQ's.
IN_HAND = 4


class Detector:
    """Delivers `SLOWER` projections in the time in which one is used, and counts those that are in memory."""

    def __init__(self) -> None:
        self._changed, self._counting = threading.Condition(), threading.RLock()
        self._used = self._held = self.most_held = 0

    def frames(self) -> Iterator[Frame]:
        for index in range(COUNT):
            with self._changed:
                self._changed.wait_for(lambda index=index: index < SLOWER * (self._used + 1))
            yield self._frame(index)

    def used(self) -> None:
        with self._changed:
            self._used += 1
            self._changed.notify_all()

    def _frame(self, index: int) -> Frame:
        pixels = np.full((SCAN.rows, SCAN.cols), index, SCAN.dtype)
        weakref.finalize(pixels, self._count, -1)
        self._count(1)
        return Frame(kind=FrameKind.PROJECTION, index=index, angle_rad=0.01 * index, pixels=pixels, acquired_s=0.0)

    def _count(self, change: int) -> None:
        with self._counting:
            self._held += change
            self.most_held = max(self.most_held, self._held)


def send(sender: AccountedSender, detector: Detector, overflow: Literal["block", "drop-oldest", "decimate"]) -> None:
    if overflow == "block":
        for frame in detector.frames():
            sender.send(frame)
    else:
        with Backlog(detector.frames(), overflow=overflow, limit=BACKLOG, stop=lambda: None) as backlog:
            for frame in backlog:
                sender.drop(backlog.drops(), policy=overflow)
                sender.send(frame)
        sender.drop(backlog.drops(), policy=overflow)
    sender.finish(0)


@pytest.mark.parametrize("overflow", ["block", "drop-oldest", "decimate"])
def test_memory_is_bounded_and_every_projection_is_used_or_listed(
    overflow: Literal["block", "drop-oldest", "decimate"],
) -> None:
    detector = Detector()
    with FrameSender("tcp://127.0.0.1:0", SCAN) as sender:
        accounted = AccountedSender(sender, SCAN)
        thread = threading.Thread(target=send, args=(accounted, detector, overflow))
        thread.start()
        used: list[int] = []
        omitted: list[int] = []
        with FrameReceiver(sender.address, credit_bytes=CREDIT * SCAN.frame_bytes) as receiver:
            receiver.scan(20)
            while not isinstance(event := receiver.next(20), Ended):
                report = receiver.report
                assert report.received - report.acked <= CREDIT
                if isinstance(event, Omitted):
                    assert event.reason == overflow
                    omitted += event.indices
                else:
                    assert isinstance(event, Arrived)
                    used.append(event.frame.index)
                    receiver.ack(event.seq)
                    detector.used()
        thread.join(20)
        assert not thread.is_alive()
    assert used == sorted(set(used))
    assert sorted(used + omitted) == list(range(COUNT))
    if overflow == "block":
        assert not omitted
        assert detector.most_held <= CREDIT + IN_HAND
    else:
        assert len(omitted) > COUNT // 2
        assert detector.most_held <= BACKLOG + CREDIT + IN_HAND
