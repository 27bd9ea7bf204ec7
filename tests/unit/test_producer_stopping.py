"""A producer that a signal stops: what was acquired is sent, the rest is listed, and the stream ends in order."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import pytest

from ministream import config
from ministream.app.producer.job import produce
from ministream.app.stop_signals import SAME_SIGNAL_S
from ministream.errors import IncompleteError
from ministream.transport import Arrived, Ended, Event, Lost, Omitted
from ministream.transport.native import FrameReceiver
from tests.waiting import eventually

PROJECTIONS = 500
SOURCE = {"kind": "phantom", "rows": 4, "cols": 16, "projections": PROJECTIONS, "flats": 2, "darks": 1}
AFTER = 10


class Receiving(threading.Thread):
    """Takes the scan, and signals this process once `AFTER` frames have come."""

    def __init__(self, announcement: Path) -> None:
        super().__init__()
        self._announcement = announcement
        self.events: list[Event] = []

    def run(self) -> None:
        eventually(self._announcement.exists)
        with FrameReceiver(json.loads(self._announcement.read_text())["data"], reports=True) as receiver:
            receiver.scan(20)
            while not (self.events and isinstance(self.events[-1], Ended)):
                event = receiver.next(20)
                assert event is not None
                self.events.append(event)
                if isinstance(event, Arrived):
                    receiver.ack(event.seq)
                if len(self.events) == AFTER:
                    os.kill(os.getpid(), signal.SIGTERM)
            receiver.conclude(written=True, complete=False, text="the rest is missing")


class Standing(threading.Thread):
    """Takes two frames, then stands still; this process gets two signals, or several of one."""

    def __init__(self, announcement: Path) -> None:
        super().__init__()
        self._announcement = announcement
        self.last: Event | None = None

    def run(self) -> None:
        eventually(self._announcement.exists)
        with FrameReceiver(json.loads(self._announcement.read_text())["data"], credit_bytes=1) as receiver:
            receiver.scan(20)
            for _ in range(2):
                assert isinstance(receiver.next(20), Arrived)
            for _ in range(3):  # mpirun, srun and the batch system may all pass it on
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.2 * SAME_SIGNAL_S)
            os.kill(os.getpid(), signal.SIGINT)
            self.last = receiver.next(20)


def test_the_second_signal_ends_the_job_at_once(tmp_path: Path) -> None:
    announcement = tmp_path / "addresses.json"
    standing = Standing(announcement)
    standing.start()
    with pytest.raises(IncompleteError, match=r"^stopped by SIGINT at once, by the second signal after SIGTERM$"):
        produce(config.load(None, {"source": SOURCE}), announcement)
    standing.join(20)
    assert isinstance(standing.last, Lost)
    assert "stopped by SIGINT at once" in standing.last.text


@pytest.mark.parametrize("how", ["block", "drop-oldest", "archive"])
def test_the_rest_of_the_scan_is_listed(tmp_path: Path, how: str) -> None:
    announcement, archive = tmp_path / "addresses.json", tmp_path / "raw.h5"
    producer: dict[str, Any] = {"rate": 100.0}
    producer |= {"archive": str(archive)} if how == "archive" else {"overflow": how}
    receiving = Receiving(announcement)
    receiving.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(IncompleteError, match=rf"^stopped by SIGTERM: \d+ of {PROJECTIONS} projections were sent$"):
        produce(config.load(None, {"source": SOURCE, "producer": producer}), announcement)
    receiving.join(20)
    assert signal.getsignal(signal.SIGTERM) is before
    *_, end = receiving.events
    assert isinstance(end, Ended)
    sent = end.totals.projections
    assert AFTER - 3 <= sent < PROJECTIONS
    omitted = [event for event in receiving.events if isinstance(event, Omitted)]
    assert {event.reason for event in omitted} == {"stopped"}
    assert [index for event in omitted for index in event.indices] == list(range(sent, PROJECTIONS))
    if how == "archive":
        with h5py.File(archive) as file:
            assert file["ministream"].attrs["dropped"] == PROJECTIONS - sent
            assert len(file["exchange/data"]) == sent
