"""One scan striped over several connections: every frame once and in order, whichever of them are lost."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream.errors import ProtocolError
from ministream.model import FrameKind
from ministream.wire import native
from ministream.wire.frames import pack
from ministream.wire.native import Bye, End, Grant, Hello, Reason, ScanInfo, Totals, Written
from ministream.wire.session import (
    Arrived,
    AskedAgain,
    Ended,
    Lost,
    Patience,
    ReceiverEvent,
    ReceiverSession,
    ReceiverState,
    Refused,
    SenderSession,
    SenderState,
    TurnedAway,
)
from tests.native_stream import make_frame, make_frames, make_scan, same

PATIENCE = Patience(first_contact_s=60, outage_s=600, stall_s=1e6)
SCAN = make_scan(projections=20)
INFO = ScanInfo.of(SCAN, codec="none")
NAME = "a" * 32
STREAMS = 3


def a_receiver(credit: int = 6, streams: int = STREAMS) -> ReceiverSession:
    facts = {"credit_bytes": credit * SCAN.frame_bytes, "max_frame_bytes": 2**20, "reports": True}
    return ReceiverSession(patience=PATIENCE, now=0.0, streams=streams, **facts)


class Cables:
    """Two sessions and what is in transit over each stream between them; a message of any stream may come next."""

    def __init__(self, credit: int, streams: int) -> None:
        self.now = 0.0
        self.source = list(make_frames(SCAN))
        self.submitted = 0
        self.sender = SenderSession(SCAN, patience=PATIENCE, now=0.0)
        self.receiver = a_receiver(credit, streams)
        self.connections = [0] * streams
        self.up: list[deque[list[native.Part]]] = [deque() for _ in range(streams)]
        self.down: list[deque[list[native.Part]]] = [deque() for _ in range(streams)]
        self.events: list[ReceiverEvent] = []
        self.lost: set[int] = set()
        self.damages = 0
        for stream in range(streams):
            self.receiver.connect(0.0, stream)

    @property
    def over(self) -> bool:
        return self.receiver.state is ReceiverState.OVER

    def peer(self, stream: int) -> bytes:
        return b"%d.%d" % (stream, self.connections[stream])

    def submit(self, stream: int) -> None:
        if self.sender.room and self.submitted < len(self.source):
            self.sender.submit(*pack(self.source[self.submitted], self.sender.info, checksum=True))
            self.submitted += 1
            if self.submitted == len(self.source):
                self.sender.end()

    def send(self, stream: int) -> None:
        for peer, parts in self.sender.outgoing(self.now):
            to, connection = map(int, peer.split(b"."))
            if connection == self.connections[to]:
                self.down[to].append(list(parts))
        for each in range(len(self.up)):
            self.up[each] += [list(parts) for parts in self.receiver.outgoing(self.now, each)]

    def hear(self, stream: int) -> None:
        if not self.down[stream] or self.over:
            return
        try:
            self.events += self.receiver.receive(self.down[stream].popleft(), self.now, stream)
        except ProtocolError:
            self.send(stream)
            while self.up[stream]:
                self.listen(stream)
            self.cut(stream)

    def listen(self, stream: int) -> None:
        if self.up[stream]:
            self.sender.receive(self.peer(stream), self.up[stream].popleft(), self.now)

    def consume(self, stream: int) -> None:
        if self.receiver.intake.consumed < self.receiver.intake.totals.next_seq:
            self.receiver.ack(self.receiver.intake.consumed, self.now)
        if self.receiver.exhausted:
            self.receiver.conclude(Written(volume=True, complete=True))

    def damage(self, stream: int) -> None:
        if self.down[stream] and self.damages < 2:
            self.damages += 1
            part = bytearray(self.down[stream][0][-1])
            part[-1] ^= 4
            self.down[stream][0][-1] = bytes(part)

    def lose(self, stream: int) -> None:
        """The connection breaks, with everything in transit."""
        if self.over or stream in self.lost:
            return
        self.up[stream].clear()
        self.down[stream].clear()
        self.receiver.disconnect(self.now, stream)
        self.connections[stream] += 1
        self.lost.add(stream)

    def make(self, stream: int) -> None:
        if stream in self.lost and not self.over:
            self.lost.discard(stream)
            self.receiver.connect(self.now, stream)

    def cut(self, stream: int) -> None:
        self.lose(stream)
        self.make(stream)

    def cut_noticed(self, stream: int) -> None:
        self.sender.lost(self.peer(stream))
        self.cut(stream)

    def settle(self) -> None:
        for _ in range(3000):
            for stream in range(len(self.up)):
                for step in (self.make, self.submit, self.send, self.hear, self.listen, self.consume):
                    step(stream)
                if self.receiver.silent(self.now, stream):
                    self.cut(stream)
            if self.sender.state is SenderState.DONE and self.over:
                return
            self.now += 0.02
        raise AssertionError(f"stuck: {self.sender.state}, {self.receiver.state}")


STEPS = ["submit", "send", "hear", "listen", "consume"] * 4 + ["damage", "cut", "cut_noticed", "lose", "make"]


@settings(max_examples=60, deadline=None)
@given(
    streams=st.integers(1, 4),
    credit=st.integers(2, 12),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), max_size=150),
)
def test_every_frame_is_used_once_and_in_order_whichever_stream_is_lost(
    streams: int, credit: int, steps: list[tuple[str, int]]
) -> None:
    cables = Cables(credit, streams)
    for step, stream in steps:
        getattr(cables, step)(stream % streams)
        held = len(cables.receiver.intake._early) + cables.receiver.intake.totals.next_seq
        assert held - cables.receiver.intake.consumed <= credit, (
            "frames that wait for earlier ones are within the credit"
        )
    cables.settle()
    assert not [event for event in cables.events if isinstance(event, Lost | Refused)]
    arrived = [event for event in cables.events if isinstance(event, Arrived)]
    assert [event.seq for event in arrived] == list(range(len(cables.source)))
    assert all(same(event.frame, sent) for event, sent in zip(arrived, cables.source, strict=True))
    assert len([event for event in cables.events if isinstance(event, Ended)]) == 1


def test_a_stream_that_is_lost_for_good_slows_the_scan_and_loses_nothing() -> None:
    cables = Cables(6, STREAMS)
    for _ in range(4):
        for stream in range(STREAMS):
            for step in (cables.submit, cables.send, cables.hear, cables.listen):
                step(stream)
    cables.down[1].clear()
    cables.receiver.disconnect(0.0, 1)  # and nobody makes another
    for _ in range(200):
        for stream in (0, 2):
            for step in (cables.submit, cables.send, cables.hear, cables.listen, cables.consume):
                step(stream)
    assert cables.sender.state is SenderState.DONE
    assert [event.seq for event in cables.events if isinstance(event, Arrived)] == list(range(25))
    assert 0 < cables.sender.retransmitted <= 6


# the sender, against receivers written by hand


def told(sender: SenderSession, peer: bytes, message: native.Message) -> list[object]:
    return list(sender.receive(peer, [native.encode(message)], 0.0))


def hello(stream: int, *, lost: tuple[int, ...] = (0, 0, 0), resume: int = 0, name: str = NAME) -> Hello:
    return Hello(receiver=name, resume=resume, limit=8, stream=stream, streams=STREAMS, lost=lost)


def a_sender(frames: int) -> SenderSession:
    """A sender that serves the streams `a`, `b` and `c` of one receiver, and has sent `frames` darks."""
    sender = SenderSession(SCAN, patience=PATIENCE, now=0.0)
    for stream, peer in enumerate((b"a", b"b", b"c")):
        told(sender, peer, hello(stream))
    for index in range(frames):
        sender.submit(*pack(make_frame(SCAN, FrameKind.DARK, index), sender.info, checksum=True))
    return sender


def sent(sender: SenderSession) -> list[tuple[bytes, int]]:
    messages = [(peer, native.decode(parts)) for peer, parts in sender.outgoing(0.0)]
    return [(peer, message.seq) for peer, message in messages if isinstance(message, native.FrameHeader)]


def test_frames_go_where_the_fewest_are_in_transit() -> None:
    sender = a_sender(6)
    assert sorted(sent(sender), key=lambda each: each[1]) == [(b"abc"[k % 3 : k % 3 + 1], k) for k in range(6)]
    told(sender, b"a", Grant(acked=0, consumed=0, limit=8, arrived=(0, 2, 0), lost=(0, 0, 0)))
    for index in (6, 7):
        sender.submit(*pack(make_frame(SCAN, FrameKind.DARK, index), sender.info, checksum=True))
    assert sent(sender) == [(b"b", 6), (b"b", 7)], "the stream that is faster carries more"


def test_what_a_lost_stream_had_in_transit_goes_out_over_the_others_once() -> None:
    sender = a_sender(6)
    sent(sender)
    lost = Grant(acked=0, consumed=0, limit=8, arrived=(0, 1, 0), lost=(0, 0, 0))
    told(sender, b"a", lost)
    told(sender, b"a", msgspec.structs.replace(lost, lost=(0, 1, 0)))
    assert [seq for _, seq in sent(sender)] == [4], "of 1 and 4, the first had arrived"
    told(sender, b"a", msgspec.structs.replace(lost, lost=(0, 1, 0)))
    assert sent(sender) == []
    assert sender.peers == (b"a", b"c")


def test_a_late_word_of_a_lost_connection_does_not_touch_the_next_one() -> None:
    sender = a_sender(3)
    sent(sender)
    told(sender, b"b2", hello(1, lost=(0, 1, 0)))
    assert sorted(sent(sender)) == [(b"b2", 1)]
    told(sender, b"c", Grant(acked=0, consumed=0, limit=8, arrived=(0, 1, 0), lost=(0, 0, 0)))
    told(sender, b"c", Grant(acked=0, consumed=0, limit=8, arrived=(0, 0, 0), lost=(0, 1, 0)))
    assert sender.peers == (b"a", b"b2", b"c")


def test_a_receiver_that_lost_every_stream_begins_where_it_says() -> None:
    sender = a_sender(3)
    sent(sender)
    told(sender, b"b2", hello(1, lost=(1, 1, 1), resume=1))
    assert sender.peers == (b"b2",)
    assert sent(sender) == [(b"b2", 1), (b"b2", 2)]


def test_a_greeting_that_was_overtaken_joins_what_goes_on() -> None:
    sender = a_sender(3)
    sent(sender)
    told(sender, b"a", Grant(acked=2, consumed=2, limit=10, arrived=(1, 1, 1), lost=(0, 0, 0)))
    told(sender, b"b2", hello(1, lost=(0, 1, 0), resume=0))
    assert sender.peers == (b"a", b"b2", b"c")
    for peer in sender.peers:
        sender.lost(peer)
    told(sender, b"c2", hello(2, lost=(1, 2, 1), resume=0))
    assert sent(sender) == [(b"c2", 2)], "the frames before it were used"


def test_the_end_goes_out_again_if_its_stream_is_lost() -> None:
    sender = a_sender(3)
    sender.end()
    (over,) = [peer for peer, parts in sender.outgoing(0.0) if isinstance(native.decode(parts), End)]
    sender.lost(over)
    (again,) = [peer for peer, parts in sender.outgoing(0.0) if isinstance(native.decode(parts), End)]
    assert again != over


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (Grant(acked=0, consumed=0, limit=8, arrived=(9, 0, 0), lost=(0, 0, 0)), "9 frames arrived over stream 0"),
        (hello(3), "Hello for stream 3 of 3"),
    ],
)
def test_a_stream_that_breaks_the_protocol_ends_alone(message: native.Message, match: str) -> None:
    sender = a_sender(3)
    (event,) = told(sender, b"a", message)
    assert isinstance(event, TurnedAway)
    assert match in event.text
    assert sender.peers == (b"b", b"c")
    assert sender.state is SenderState.STREAMING


def test_another_receiver_is_turned_away_on_every_stream() -> None:
    sender = a_sender(3)
    for stream in range(STREAMS):
        (event,) = told(sender, b"x%d" % stream, hello(stream, name="b" * 32))
        assert isinstance(event, TurnedAway)
    assert sender.peers == (b"a", b"b", b"c")


# the receiver, against a producer written by hand


def framed(seq: int, kind: FrameKind = FrameKind.PROJECTION) -> list[native.Part]:
    header, payload = pack(make_frame(SCAN, kind, seq), INFO, checksum=True)
    return [native.encode(msgspec.structs.replace(header, seq=seq)), payload]


def greeted(credit: int = 6) -> ReceiverSession:
    receiver = a_receiver(credit)
    for stream in range(STREAMS):
        receiver.connect(0.0, stream)
        receiver.receive([native.encode(INFO)], 0.0, stream)
    return receiver


def test_order_is_restored_within_the_credit() -> None:
    receiver = greeted(credit=3)
    assert receiver.receive(framed(2), 0.0, 2) == []
    assert receiver.receive(framed(1), 0.0, 1) == []
    assert [event.seq for event in receiver.receive(framed(0), 0.0, 0)] == [0, 1, 2]
    with pytest.raises(ProtocolError, match="received frame 3, the credit ends below 3"):
        receiver.receive(framed(3), 0.0, 1)
    assert receiver.state is ReceiverState.STREAMING, "the other streams go on"


def test_the_end_waits_for_the_frames_of_slower_streams() -> None:
    receiver = greeted()
    assert receiver.receive([native.encode(End(totals=Totals(projections=2)))], 0.0, 2) == []
    assert [type(event) for event in receiver.receive(framed(0), 0.0, 0)] == [Arrived]
    assert [type(event) for event in receiver.receive(framed(1), 0.0, 1)] == [Arrived, Ended]


def test_the_end_of_a_producer_that_leaves_waits_for_what_is_in_transit() -> None:
    receiver = greeted()
    farewell = [native.encode(Bye(reason=Reason.LEFT, text="beam dump", totals=Totals(projections=5)))]
    assert receiver.receive(framed(0), 0.0, 0) != []
    assert receiver.receive(farewell, 0.0, 0) == []
    assert receiver.receive(framed(1), 0.0, 1) != []
    assert receiver.receive(farewell, 0.0, 1) == []
    receiver.disconnect(0.0, 2)
    (lost,) = receiver.check(0.0)
    assert lost == Lost("the producer aborted: beam dump", Totals(projections=5))


def test_what_was_asked_for_again_over_a_lost_stream_is_asked_for_over_another() -> None:
    receiver = greeted()
    header, payload = framed(0)
    (event,) = receiver.receive([header, bytes(len(payload))], 0.0, 1)
    assert isinstance(event, AskedAgain)
    asked = [native.decode(parts) for parts in receiver.outgoing(0.0, 0)]
    assert native.Again(seq=0) in asked
    receiver.disconnect(0.0, 0)
    asked = [native.decode(parts) for parts in receiver.outgoing(0.0, 1)]
    assert native.Again(seq=0) in asked


def test_calibration_that_overtook_nothing_and_comes_after_a_projection_ends_its_stream() -> None:
    receiver = greeted()
    receiver.receive(framed(1, FrameKind.DARK), 0.0, 1)
    assert [event.seq for event in receiver.receive(framed(0), 0.0, 0)] == [0]
    with pytest.raises(ProtocolError, match="frame 1 of the calibration comes after the first projection"):
        receiver.receive(framed(1, FrameKind.DARK), 0.0, 1)
