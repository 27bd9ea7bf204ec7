"""One scan over several real connections: complete and in order while one of them is cut, silent, or never made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest

from ministream.config import Config, load
from ministream.errors import UsageError
from ministream.model import FrameKind
from ministream.transport import Arrived, Ended, Event, Lost, SenderReport
from ministream.transport.native import FrameReceiver, FrameSender
from tests.cable import Cable
from tests.native_stream import make_frame, make_frames, make_scan, same
from tests.sending import Sending, events_of

MIB = 2**20
LOOPBACK = "tcp://127.0.0.1:0"
SCAN = make_scan(rows=512, cols=512, projections=60)  # 0.5 MiB per frame
HASTY = {"silent_timeout_s": 0.5, "heartbeat_s": 0.1}


def striped(
    streams: int, disturb: Callable[[Event, list[Cable]], None], credit_mib: int = 8
) -> tuple[list[Event], SenderReport, FrameReceiver]:
    """Send the scan, each stream through a cable; `disturb` is called with each event."""
    with ExitStack() as stack:
        sender = stack.enter_context(FrameSender(LOOPBACK, SCAN, **HASTY))
        cables = [stack.enter_context(Cable(sender.address)) for _ in range(streams)]
        sending = Sending(sender, list(make_frames(SCAN)))
        urls = [cable.address for cable in cables]
        with FrameReceiver(urls, streams=streams, credit_bytes=credit_mib * MIB, **HASTY) as receiver:
            events = []
            for event in events_of(receiver):
                events.append(event)
                disturb(event, cables)
        sending.join(20)
        assert sending.report is not None, sending.error
        return events, sending.report, receiver


def assert_whole(events: list[Event]) -> None:
    *arrived, ended = events
    assert isinstance(ended, Ended)
    assert all(isinstance(e, Arrived) and same(e.frame, f) for e, f in zip(arrived, make_frames(SCAN), strict=True))


@pytest.mark.parametrize("listen", [LOOPBACK, "inproc://striped"])
def test_every_stream_carries_its_part(listen: str) -> None:
    with FrameSender(listen, SCAN) as sender:
        sending = Sending(sender, list(make_frames(SCAN)))
        with FrameReceiver(sender.address, streams=4, credit_bytes=8 * MIB) as receiver:
            assert_whole(list(events_of(receiver)))
        sending.join(20)
    carried = receiver.report.streams
    assert len(carried) == 4
    assert all(stream.frames and stream.connections == 1 for stream in carried)
    assert sum(stream.frames for stream in carried) == receiver.report.received == 65
    assert sum(stream.bytes for stream in carried) == receiver.report.bytes == 65 * SCAN.frame_bytes


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_stream_that_is_cut_costs_nothing_and_is_made_again(which: int) -> None:
    def cut(event: Event, cables: list[Cable]) -> None:
        if isinstance(event, Arrived) and event.seq == 20:
            cables[which].cut()

    events, report, receiver = striped(3, cut)
    assert_whole(events)
    assert receiver.report.streams[which].connections > 1
    assert [s.connections for k, s in enumerate(receiver.report.streams) if k != which] == [1, 1]
    assert report.retransmitted <= 16, "no more than what was in transit"


def test_a_stream_that_goes_silent_is_asked_for_over_the_others() -> None:
    def silence(event: Event, cables: list[Cable]) -> None:
        if isinstance(event, Arrived) and event.seq == 20:
            cables[1].dead = True

    events, report, _ = striped(3, silence)
    assert_whole(events)
    assert report.retransmitted > 0


def test_an_address_that_leads_nowhere_leaves_its_stream_to_another() -> None:
    with FrameSender(LOOPBACK, SCAN) as sender, Cable("tcp://127.0.0.1:1") as nowhere:
        sending = Sending(sender, list(make_frames(SCAN)))
        with FrameReceiver([nowhere.address, sender.address], streams=2, credit_bytes=2 * MIB) as receiver:
            assert_whole(list(events_of(receiver)))
        sending.join(20)
    assert all(stream.frames for stream in receiver.report.streams[:1])


def test_a_producer_that_leaves_is_reported_once_with_what_it_had_sent() -> None:
    with FrameSender(LOOPBACK, SCAN) as sender, FrameReceiver(sender.address, streams=3) as receiver:
        for index in range(9):
            sender.send(make_frame(SCAN, FrameKind.PROJECTION, index))
        sender.abort("beam dump")
        *arrived, lost = events_of(receiver)
    assert [event.seq for event in arrived if isinstance(event, Arrived)] == list(range(9))
    assert isinstance(lost, Lost)
    assert "beam dump" in lost.text


def test_a_receiver_that_leaves_frees_every_stream() -> None:
    with FrameSender(LOOPBACK, replace(SCAN, scan_id="left")) as sender:
        with FrameReceiver(sender.address, streams=3) as receiver:
            sender.send(make_frame(SCAN, FrameKind.PROJECTION, 0))
            assert isinstance(receiver.next(20), Arrived)
            receiver.close("disk full")
        sending = Sending(sender, [])
        sending.join(20)
    assert "disk full" in str(sending.error)


def test_only_wires_that_stripe_take_streams() -> None:
    assert load(None, {"stream": {"streams": 4}}).stream.streams == 4
    with pytest.raises(UsageError, match="uses one connection: leave out streams"):
        load(None, {"stream": {"streams": 4, "wire": "tracemq"}})
    assert Config().stream.streams == 1
