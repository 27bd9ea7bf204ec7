"""A connection that breaks again and again: every frame arrives once, and nothing grows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from ministream.model import Frame, FrameKind, Scan
from ministream.transport import Arrived, Ended
from ministream.transport.native import FrameReceiver, FrameSender
from tests.cable import Cable

SCAN = Scan(scan_id="scan-1", rows=4, cols=16, projections=0, flats=0, darks=0, dtype="<u2")


def frames(count: int) -> Iterator[Frame]:
    for index in range(count):
        pixels = np.full((SCAN.rows, SCAN.cols), index, "<u2")
        yield Frame(kind=FrameKind.PROJECTION, index=index, angle_rad=0.01 * index, pixels=pixels, acquired_s=0.0)


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.long)])
def test_a_connection_that_breaks_all_the_time_costs_nothing(times: int) -> None:
    with FrameSender("tcp://127.0.0.1:0", SCAN) as sender, Cable(sender.address) as cable:

        def send() -> None:
            for frame in frames(2 * times):
                sender.send(frame)
            sender.finish()

        thread = threading.Thread(target=send)
        # two frames in flight: all others wait for the next connection
        with FrameReceiver(cable.address, credit_bytes=1) as receiver:
            receiver.scan(60)
            thread.start()
            indices, files, threads = [], [], []
            while not isinstance(event := receiver.next(60), Ended):
                assert isinstance(event, Arrived)
                indices.append(event.frame.index)
                receiver.ack(event.seq)
                cable.cut()
                files.append(psutil.Process().num_fds())
                threads.append(threading.active_count())
            assert indices == list(range(2 * times))
            assert cable.connections >= times
            # their number goes up and down with every connection; it must not grow
            for counts in (files, threads):
                assert max(counts[-20:]) <= max(counts[:20]) + 8
        thread.join(60)
        assert not thread.is_alive()
