"""The native stream's two ends, back to back in memory: every frame once, in order, whatever the link does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream.errors import ConfigError, InputError, PeerError, PeerLostError, ProtocolError
from ministream.model import Frame, FrameKind, Scan
from ministream.wire import native
from ministream.wire.frames import pack
from ministream.wire.native import (
    Again,
    Bye,
    End,
    Grant,
    Heartbeat,
    Hello,
    Omission,
    Reason,
    ScanInfo,
    Totals,
    Written,
)
from ministream.wire.session import (
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
    ReceiverSession,
    ReceiverState,
    Refused,
    SenderSession,
    SenderState,
    Stalled,
    TurnedAway,
)
from tests.native_stream import flipped, make_frame, make_frames, make_scan, same

PATIENCE = Patience(first_contact_s=60, outage_s=600, stall_s=30)
FRAME_BYTES = make_scan().frame_bytes


def a_receiver(credit: int = 4, **changes: object) -> ReceiverSession:
    facts = {"patience": PATIENCE, "now": 0.0, "credit_bytes": credit * FRAME_BYTES, "max_frame_bytes": 2**20}
    return ReceiverSession(**facts | changes)  # type: ignore[arg-type]


@dataclass
class Link:
    """Two sessions and what is on the way between them; either may be started again."""

    scan: Scan = field(default_factory=make_scan)
    credit: int = 4
    bad: set[int] = field(default_factory=set)
    omitted: set[int] = field(default_factory=set)
    now: float = 0.0
    connection: int = 0
    to_sender: deque[list[native.Part]] = field(default_factory=deque)
    to_receiver: deque[list[native.Part]] = field(default_factory=deque)
    events: list[ReceiverEvent] = field(default_factory=list)
    used: list[Frame] = field(default_factory=list)
    most_held: int = 0
    damages: int = 0
    bit: int = 0

    def __post_init__(self) -> None:
        self.source = list(make_frames(self.scan))
        self.receiver = a_receiver(self.credit, reports=True)
        self.receiver.connect(0.0)
        self.start_producer()

    @property
    def peer(self) -> bytes:
        return b"connection %d" % self.connection

    @property
    def over(self) -> bool:
        return self.receiver.state is ReceiverState.OVER

    # one step each

    def start_producer(self) -> None:
        """What the producer held in memory is gone; its source plays the same scan again."""
        self.sender = SenderSession(self.scan, patience=PATIENCE, now=self.now)
        self.submitted = 0

    def restart_producer(self) -> None:
        if not self.over:
            self.start_producer()
            self.cut()

    def restart_receiver(self) -> None:
        """What the receiver had not used is gone; the totals of what it had are not."""
        if self.over:
            return
        held = Totals()
        for seq in range(self.receiver.intake.consumed):
            held = held.after(self.entry(seq))
        self.receiver = a_receiver(self.credit, reports=True, scan=self.scan.scan_id, held=held, now=self.now)
        self.events.clear()
        self.cut()

    def entry(self, seq: int) -> native.FrameHeader | Omission:
        """What stands for `seq` in the stream."""
        frame = self.source[seq]
        if seq in self.omitted:
            return Omission(seq=seq, indices=(frame.index,), reason="drop-oldest", at_s=1.7e9)
        return pack(frame, self.sender.info, checksum=True)[0]

    def submit(self) -> None:
        if self.sender.room and self.submitted < len(self.source):
            entry = self.entry(self.submitted)
            if isinstance(entry, Omission):
                self.sender.omit(entry)
            else:
                payload = pack(self.source[self.submitted], self.sender.info, checksum=True)[1]
                self.sender.submit(entry, bytes(len(payload)) if self.submitted in self.bad else payload)
            self.submitted += 1
        elif self.submitted == len(self.source):
            self.sender.end()
            self.submitted += 1
        self.most_held = max(self.most_held, self.sender.totals.next_seq - self.sender.consumed)

    def send(self) -> None:
        self.to_receiver += [list(parts) for peer, parts in self.sender.outgoing(self.now) if peer == self.peer]

    def reply(self) -> None:
        self.to_sender += [list(parts) for parts in self.receiver.outgoing(self.now)]

    def hear(self) -> None:
        if not self.to_receiver:
            return
        try:
            self.events += self.receiver.receive(self.to_receiver.popleft(), self.now)
        except ProtocolError:
            self.reply()
            for parts in self.to_sender:
                self.sender.receive(self.peer, parts, self.now)
            self.now += 1.0  # the driver pauses before it connects again
            self.cut()

    def listen(self) -> None:
        if self.to_sender:
            self.sender.receive(self.peer, self.to_sender.popleft(), self.now)

    def consume(self) -> None:
        """Use the next frame that has come and was not refused."""
        seq = self.receiver.intake.consumed
        if seq < self.receiver.intake.totals.next_seq:
            self.receiver.ack(seq, self.now)
            self.used += [e.frame for e in self.events if isinstance(e, Arrived) and e.seq == seq][-1:]
        if self.receiver.exhausted:
            self.receiver.conclude(Written(volume=True, complete=not self.bad and not self.omitted))

    def wait(self) -> None:
        self.now += 1.0

    def repeat(self) -> None:
        """A frame comes twice."""
        for parts in list(self.to_receiver)[:1]:
            if isinstance(native.decode(parts), native.FrameHeader):
                self.to_receiver.appendleft(list(parts))

    def damage(self) -> None:
        """A bit of whatever comes next at the receiver flips."""
        self._damage(self.to_receiver)

    def damage_reply(self) -> None:
        """A bit of whatever comes next at the producer flips."""
        self._damage(self.to_sender)

    def _damage(self, queue: deque[list[native.Part]]) -> None:
        # A frame that is damaged three times is given up, so there are never three.
        if queue and self.damages < 2:
            self.damages += 1
            self.bit += 997
            part = self.bit % len(queue[0])
            queue[0][part] = flipped(queue[0][part], self.bit)

    def cut(self) -> None:
        """The connection breaks; the sender does not notice. What was on the way is gone."""
        if self.over:
            return
        self.to_sender.clear()
        self.to_receiver.clear()
        self.receiver.disconnect(self.now)
        self.connection += 1
        self.receiver.connect(self.now)

    def cut_noticed(self) -> None:
        """The same, and the sender's transport notices."""
        self.sender.lost(self.peer)
        self.cut()

    def settle(self) -> None:
        """Go on to the confirmed end, undisturbed."""
        for _ in range(3000):
            for step in (self.submit, self.send, self.hear, self.reply, self.listen, self.consume):
                step()
            if self.sender.state is SenderState.DONE and self.over:
                return
            self.now += 0.02
            if self.receiver.silent(self.now):
                self.cut()
        raise AssertionError(f"stuck: {self.sender.state}, {self.receiver.state}")


STEPS = ["submit", "send", "reply", "hear", "listen", "consume"]
FAULTS = ["wait", "repeat", "damage", "damage_reply", "cut", "cut_noticed", "restart_producer", "restart_receiver"]
# Faults are rarer than the rest, or nothing would ever get through between two of them.
CHAOS = st.lists(st.sampled_from(STEPS * 4 + FAULTS), max_size=300)


@settings(max_examples=300, deadline=None)
@given(
    steps=CHAOS, credit=st.integers(0, 20), omitted=st.sets(st.integers(5, 11), max_size=2), bit=st.integers(0, 2**16)
)
def test_every_frame_is_used_once_and_in_order_whatever_happens(
    steps: list[str], credit: int, omitted: set[int], bit: int
) -> None:
    link = Link(credit=credit, omitted=omitted, bit=bit)
    for step in steps:
        getattr(link, step)()
    link.settle()
    sent = [frame for seq, frame in enumerate(link.source) if seq not in omitted]
    assert len(link.used) == len(sent)
    assert all(same(one, other) for one, other in zip(link.used, sent, strict=True))
    assert link.sender.written == Written(volume=True, complete=not omitted)
    (end,) = [event for event in link.events if isinstance(event, Ended)]
    assert end.totals == link.sender.totals
    assert (end.totals.projections, end.totals.dropped) == (7 - len(omitted), len(omitted))
    assert link.most_held <= max(2, credit)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS * 4 + ["wait", "cut", "cut_noticed"]), max_size=300),
    bad=st.sets(st.integers(0, 11)),
)
def test_frames_that_were_bad_from_the_start_are_refused_after_three_attempts(steps: list[str], bad: set[int]) -> None:
    link = Link(bad=bad)
    for step in steps:
        getattr(link, step)()
    link.settle()
    refused = [e for e in link.events if isinstance(e, Refused)]
    assert {e.seq for e in refused} == bad
    assert all(e.reason == "checksum" for e in refused)
    assert [e.kind for e in refused] == [link.source[e.seq].kind for e in refused]
    arrived = [e.seq for e in link.events if isinstance(e, Arrived)]
    assert sorted(arrived + [e.seq for e in refused]) == list(range(12))
    assert link.sender.refused == len(bad)


@pytest.mark.parametrize("bit", range(0, 8 * 200, 7))
def test_a_bit_that_flips_in_any_message_costs_no_frame_and_changes_none(bit: int) -> None:
    link = Link()
    for _ in range(12):
        for step in (link.submit, link.send, link.reply, link.listen):
            step()
        link.bit = bit
        link.damages = 0
        link.damage()
        link.hear()
        link.consume()
    link.settle()
    assert len(link.used) == 12
    assert all(same(one, other) for one, other in zip(link.used, link.source, strict=True))
    assert not any(isinstance(e, Refused | Lost) for e in link.events)


# the receiver, against a producer written by hand

INFO = ScanInfo.of(make_scan(), codec="none")


def encoded(message: native.Message) -> list[native.Part]:
    return [native.encode(message)]


def framed(seq: int, kind: FrameKind = FrameKind.PROJECTION) -> list[native.Part]:
    header, payload = pack(make_frame(make_scan(), kind, seq), INFO, checksum=True)
    return [native.encode(msgspec.structs.replace(header, seq=seq)), payload]


def greeted(**changes: object) -> ReceiverSession:
    """A receiver that has connected and knows the scan."""
    receiver = a_receiver(**changes)
    receiver.connect(0.0)
    receiver.receive(encoded(INFO), 0.0)
    return receiver


def said(session: ReceiverSession, now: float = 0.0) -> list[native.Message]:
    return [native.decode(parts) for parts in session.outgoing(now)]


def test_a_receiver_greets_then_grants() -> None:
    receiver = a_receiver(credit=5)
    receiver.connect(0.0)
    (hello,) = said(receiver)
    assert isinstance(hello, Hello)
    assert (hello.scan, hello.resume, hello.limit, hello.codecs) == ("", 0, 0, ("none",))
    receiver.receive(encoded(INFO), 0.0)
    assert said(receiver) == [Grant(acked=0, consumed=0, limit=5)]
    assert said(receiver) == []
    receiver.receive(framed(0), 0.0)
    receiver.ack(0, 0.0)
    assert said(receiver) == [Grant(acked=1, consumed=1, limit=6)]


def test_a_receiver_that_dials_again_names_itself_its_scan_and_its_position() -> None:
    receiver = a_receiver(credit=5)
    receiver.connect(0.0)
    first, *_ = said(receiver)
    for parts in (encoded(INFO), framed(0), framed(1)):
        receiver.receive(parts, 0.0)
    receiver.disconnect(1.0)
    receiver.connect(2.0)
    second, *_ = said(receiver)
    assert second == Hello(receiver=first.receiver, scan="scan-1", resume=2, limit=5)


@pytest.mark.parametrize(("credit_bytes", "frames"), [(0, 2), (1000, 33), (2**40, MAX_FRAMES_HELD)])
def test_credit_is_counted_in_whole_frames(credit_bytes: int, frames: int) -> None:
    assert said(greeted(credit_bytes=credit_bytes))[-1] == Grant(acked=0, consumed=0, limit=frames)


BREACHES = {
    "a gap": [framed(1)],
    "beyond the credit": [framed(0), framed(1), framed(2)],
    "calibration after data": [framed(0), framed(1, FrameKind.FLAT)],
    "a second description": [encoded(INFO)],
    "totals that do not fit": [encoded(End(totals=Totals(projections=1)))],
    "totals of another kind": [framed(0), encoded(End(totals=Totals(flats=1)))],
    "two ends": [encoded(End(totals=Totals())), encoded(End(totals=Totals()))],
    "a frame after the end": [encoded(End(totals=Totals())), framed(0)],
    "done before the end": [encoded(Bye(reason=Reason.DONE))],
    "a receiver's message": [encoded(Grant(acked=0, consumed=0, limit=1))],
    "garbage": [[b"garbage"]],
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_of_protocol_ends_the_connection_and_is_told_to_the_producer(breach: list[list[native.Part]]) -> None:
    receiver = greeted(credit=2)
    said(receiver)
    for parts in breach[:-1]:
        receiver.receive(parts, 0.0)
    with pytest.raises(ProtocolError) as raised:
        receiver.receive(breach[-1], 0.0)
    assert said(receiver) == [Bye(reason=Reason.PROTOCOL, text=str(raised.value))]
    assert receiver.state is ReceiverState.APART
    receiver.connect(1.0)
    (hello,) = said(receiver, 1.0)
    assert hello.resume == receiver.intake.totals.next_seq


def test_a_producer_that_only_breaks_the_protocol_is_given_up() -> None:
    receiver = greeted()
    for now in range(9):
        with pytest.raises(ProtocolError):
            receiver.receive([b"garbage"], now)
        receiver.connect(now)
    (lost,) = receiver.receive([b"garbage"], 9.0)
    assert isinstance(lost, Lost)
    stranger = a_receiver()
    for now in range(9):
        stranger.connect(now)
        with pytest.raises(ProtocolError):
            stranger.receive([b"garbage"], now)
    stranger.connect(9.0)
    with pytest.raises(PeerError, match="not of the Mini-Stream protocol"):
        stranger.receive([b"garbage"], 9.0)
    assert stranger.state is ReceiverState.OVER


def test_a_frame_that_comes_twice_is_recognised() -> None:
    receiver = greeted()
    receiver.receive(framed(0), 0.0)
    assert receiver.receive(framed(0), 0.0) == []
    assert (receiver.intake.repeated, receiver.intake.received, receiver.intake.totals.next_seq) == (1, 1, 1)


def test_a_damaged_frame_is_asked_for_again_and_what_overtook_it_waits() -> None:
    receiver = greeted()
    said(receiver)
    header, payload = framed(0)
    (event,) = receiver.receive([header, flipped(payload, 3)], 0.0)
    assert isinstance(event, AskedAgain)
    assert said(receiver) == [Again(seq=0)]
    assert receiver.receive(framed(1), 0.0) == []
    assert receiver.receive(encoded(End(totals=Totals(projections=2))), 0.0) == []
    assert [type(e) for e in receiver.receive(framed(0), 0.0)] == [Arrived, Arrived, Ended]
    assert (receiver.intake.asked_again, receiver.intake.refused) == (1, 0)


def test_projections_left_out_are_told_in_their_place() -> None:
    receiver = greeted(credit=5)
    receiver.receive(framed(0), 0.0)
    omission = Omission(seq=1, indices=(1, 2, 3), reason="drop-oldest", at_s=1.7e9)
    assert receiver.receive(encoded(omission), 0.0) == [Omitted(1, (1, 2, 3), "drop-oldest", 1.7e9)]
    receiver.ack(0, 0.0)
    assert receiver.intake.consumed == 2, "nobody acknowledges an omission"
    assert receiver.intake.totals.drops == {"drop-oldest": 3}


def test_a_receiver_that_saves_lets_the_producer_forget_what_is_safe_alone() -> None:
    receiver = greeted(credit=5, saves=True, reports=True)
    for seq in range(3):
        receiver.receive(framed(seq), 0.0)
    receiver.ack(2, 0.0)
    assert said(receiver)[-1] == Grant(acked=0, consumed=3, limit=8)
    receiver.intake.save(1)
    assert said(receiver)[-1] == Grant(acked=2, consumed=3, limit=8)


def test_the_outcome_is_told_when_it_is_known() -> None:
    receiver = greeted(reports=True)
    said(receiver)
    receiver.receive(framed(0), 0.0)
    receiver.receive(encoded(End(totals=receiver.intake.totals)), 0.0)
    receiver.ack(0, 0.0)
    assert said(receiver) == [Grant(acked=1, consumed=1, limit=5)]
    outcome = Written(volume=True, complete=False, text="3 projections refused")
    receiver.conclude(outcome)
    assert said(receiver) == [outcome, Bye(reason=Reason.DONE)]


def test_frames_before_the_description_are_out_of_turn() -> None:
    receiver = a_receiver()
    receiver.connect(0.0)
    with pytest.raises(ProtocolError, match="received FrameHeader out of turn"):
        receiver.receive(framed(0), 0.0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rows": 2**20, "cols": 2**20}, "are allowed"),
        ({"codec": "unheard-of"}, "unknown codec 'unheard-of'"),
        ({"first": 3}, "resume at frame 0, not 3"),
    ],
)
def test_a_description_that_cannot_be_served_is_refused(changes: dict[str, object], match: str) -> None:
    receiver = a_receiver()
    receiver.connect(0.0)
    with pytest.raises(PeerError, match=match):
        receiver.receive(encoded(msgspec.structs.replace(INFO, **changes)), 0.0)


def test_a_scan_that_changes_between_connections_ends() -> None:
    receiver = greeted()
    receiver.connect(1.0)
    (lost,) = receiver.receive(encoded(msgspec.structs.replace(INFO, rows=4)), 1.0)
    assert "changed its description" in lost.text


@pytest.mark.parametrize(
    ("reason", "error", "state"),
    [
        (Reason.OTHER_SCAN, PeerError, ReceiverState.OVER),
        (Reason.LEFT, PeerLostError, ReceiverState.OVER),
        (Reason.BUSY, ProtocolError, ReceiverState.APART),
        (Reason.PROTOCOL, ProtocolError, ReceiverState.APART),
    ],
)
def test_a_rejection_is_an_error_with_the_producers_words(
    reason: Reason, error: type[PeerError], state: ReceiverState
) -> None:
    receiver = a_receiver()
    receiver.connect(0.0)
    with pytest.raises(error, match="because of this"):
        receiver.receive(encoded(Bye(reason=reason, text="because of this")), 0.0)
    assert receiver.state is state, "APART means that it tries again"


def test_a_producer_that_gives_up_in_the_middle_leaves_what_has_arrived() -> None:
    receiver = greeted()
    receiver.receive(framed(0), 0.0)
    assert receiver.receive(encoded(Bye(reason=Reason.LEFT, text="beam dump")), 0.0) == [
        Lost("the producer aborted: beam dump")
    ]
    receiver = greeted()
    receiver.receive(encoded(Heartbeat(totals=Totals(projections=5))), 0.0)
    (lost,) = receiver.receive(encoded(Bye(reason=Reason.LEFT, text="beam dump")), 0.0)
    assert lost.announced == Totals(projections=5), "what is known of how much was sent"
    assert receiver.state is ReceiverState.OVER


def test_the_end_is_confirmed_only_when_everything_is_consumed() -> None:
    receiver = greeted()
    receiver.receive(framed(0), 0.0)
    receiver.receive(encoded(End(totals=receiver.intake.totals)), 0.0)
    assert Bye(reason=Reason.DONE) not in said(receiver)
    receiver.ack(0, 0.0)
    assert said(receiver) == [Grant(acked=1, consumed=1, limit=5), Bye(reason=Reason.DONE)]
    assert said(receiver) == []
    receiver.receive(encoded(Bye(reason=Reason.DONE)), 0.0)
    assert receiver.state is ReceiverState.OVER


def test_acknowledging_what_has_not_arrived_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="frame 0 acknowledged, 0 have arrived"):
        greeted().ack(0, 0.0)


def test_a_receiver_gives_up_when_nobody_ever_answers() -> None:
    receiver = a_receiver()
    for now in range(0, 61, 5):
        receiver.connect(now)
        assert receiver.check(now) == []
    with pytest.raises(PeerLostError, match="timed out after 60 s waiting for the producer"):
        receiver.check(60.1)


def test_a_receiver_gives_up_a_producer_after_the_outage_time() -> None:
    receiver = greeted()
    receiver.receive(framed(0), 10.0)
    for now in (20.0, 300.0, 609.9):
        receiver.disconnect(now)
        receiver.connect(now)
        assert not [event for event in receiver.check(now) if isinstance(event, Lost)]
    assert receiver.check(610.1) == [Lost("no contact with the producer for 600 s")]
    assert receiver.check(700.0) == []


def test_a_producer_with_heartbeats_and_no_frames_is_stalled_not_lost() -> None:
    receiver = greeted()
    events = []
    for now in range(100):
        receiver.receive(encoded(Heartbeat()), now)
        events += receiver.check(now)
    assert events == [Stalled(31)]
    receiver.receive(framed(0), 100.0)
    receiver.receive(encoded(Heartbeat()), 130.0)
    assert receiver.check(130.5) == [Stalled(30.5)]


def test_a_receiver_that_grants_nothing_does_not_call_the_producer_stalled() -> None:
    receiver = greeted(credit=2)
    for seq in (0, 1):
        receiver.receive(framed(seq), 0.0)
    for now in range(1, 50):
        receiver.receive(encoded(Heartbeat()), now)
        assert receiver.check(now) == []
    receiver.ack(0, 50.0)
    receiver.receive(encoded(Heartbeat()), 79.0)
    assert receiver.check(79.9) == []
    assert receiver.check(80.1) == [Stalled(pytest.approx(30.1))]


def test_a_silent_connection_is_given_longer_each_time_until_a_frame_comes() -> None:
    receiver = greeted()
    assert not receiver.silent(5.0)
    assert receiver.silent(5.1)
    receiver.disconnect(5.1)
    receiver.connect(6.0)
    assert not receiver.silent(16.0)
    assert receiver.silent(16.1)
    receiver.receive(encoded(INFO), 16.1)
    receiver.receive(framed(0), 17.0)
    assert not receiver.silent(22.0)
    assert receiver.silent(22.1)


def test_a_link_on_which_frames_take_long_is_given_longer_as_long_as_they_do() -> None:
    receiver = greeted()
    receiver.receive(framed(0), 4.0)
    assert not receiver.silent(16.0)
    assert receiver.silent(16.1)
    receiver.receive(framed(1), 4.5)
    assert receiver.silent(9.6)


def test_a_receiver_with_nothing_to_say_sends_heartbeats() -> None:
    receiver = greeted()
    said(receiver)
    assert receiver.wait_s(0.0) == 1.0
    assert said(receiver, 0.9) == []
    assert said(receiver, 1.0) == [Heartbeat()]
    assert said(receiver, 1.5) == []


@pytest.mark.parametrize(("returns", "reason"), [(False, Reason.LEFT), (True, Reason.AWAY)])
def test_a_receiver_that_leaves_says_why(returns: bool, reason: Reason) -> None:
    receiver = greeted()
    said(receiver)
    receiver.leave("disk full", returns=returns)
    assert said(receiver) == [Bye(reason=reason, text="disk full")]
    assert receiver.state is ReceiverState.OVER


# the sender, against receivers written by hand

NAME, OTHER = "a" * 32, "b" * 32


def a_sender(frames: int = 0, scan: Scan | None = None, **changes: object) -> SenderSession:
    """A sender that has a receiver on `one` with credit for 5, and has sent `frames` projections."""
    scan = scan or make_scan(darks=0, flats=0)
    sender = SenderSession(scan, patience=PATIENCE, now=0.0, **changes)  # type: ignore[arg-type]
    if frames:
        tell(sender, b"one", Hello(receiver=NAME, resume=0, limit=5))
        for index in range(frames):
            sender.submit(*pack(make_frame(scan, FrameKind.PROJECTION, index), sender.info, checksum=True))
        sender.outgoing(0.0)
    return sender


def tell(sender: SenderSession, peer: bytes, message: native.Message, now: float = 0.0) -> list[object]:
    return list(sender.receive(peer, encoded(message), now))


def answers(sender: SenderSession, now: float = 0.0) -> list[tuple[bytes, native.Message]]:
    return [(peer, native.decode(parts)) for peer, parts in sender.outgoing(now)]


def seqs(sender: SenderSession) -> list[int]:
    return [message.seq for _, message in answers(sender) if isinstance(message, native.FrameHeader)]


def turned_away(sender: SenderSession, peer: bytes, hello: Hello, now: float = 0.0) -> Bye:
    """Say `hello`, which must be refused; the refusal."""
    (event,) = tell(sender, peer, hello, now)
    assert isinstance(event, TurnedAway)
    (refusal,) = [m for to, m in answers(sender, now) if to == peer]
    assert isinstance(refusal, Bye)
    assert refusal.text == event.text
    return refusal


def test_nothing_is_sent_beyond_the_credit_or_the_senders_own_limit() -> None:
    sender = a_sender(frames=5)
    assert not sender.room
    tell(sender, b"one", Grant(acked=1, consumed=1, limit=6))
    assert sender.room
    sender = SenderSession(make_scan(), patience=PATIENCE, now=0.0, hold_bytes=3 * FRAME_BYTES)
    tell(sender, b"one", Hello(receiver=NAME, resume=0, limit=2**50))
    for index in range(3):
        assert sender.room
        sender.submit(*pack(make_frame(make_scan(), FrameKind.DARK, index), sender.info, checksum=False))
    assert not sender.room


def test_a_grant_that_comes_late_or_twice_changes_nothing() -> None:
    sender = a_sender(frames=4)
    for grant in (
        Grant(acked=3, consumed=3, limit=8),
        Grant(acked=1, consumed=1, limit=6),
        Grant(acked=3, consumed=3, limit=8),
    ):
        tell(sender, b"one", grant)
    assert sender.acked == 3
    assert seqs(sender) == []


def test_a_receiver_that_dials_again_gets_the_frames_from_where_it_asks() -> None:
    sender = a_sender(frames=5)
    tell(sender, b"one", Grant(acked=2, consumed=2, limit=7))
    tell(sender, b"two", Hello(receiver=NAME, resume=3, limit=7))
    (peer, info), *frames = answers(sender)
    assert peer == b"two"
    assert info == msgspec.structs.replace(sender.info, first=3)
    assert [(to, m.seq) for to, m in frames] == [(b"two", 3), (b"two", 4)]
    assert sender.retransmitted == 2
    tell(sender, b"one", Grant(acked=5, consumed=5, limit=10))
    assert sender.acked == 2, "a superseded connection has nothing to say"


def test_a_second_receiver_is_turned_away_while_the_first_is_there() -> None:
    sender = a_sender(frames=2)
    assert turned_away(sender, b"two", Hello(receiver=OTHER, resume=0, limit=5)).reason is Reason.BUSY
    tell(sender, b"one", Grant(acked=1, consumed=1, limit=6))
    assert sender.acked == 1


def test_what_a_connection_said_before_it_was_lost_counts_until_there_is_another() -> None:
    sender = a_sender(frames=3)
    sender.lost(b"one")
    tell(sender, b"one", Grant(acked=2, consumed=2, limit=7))
    assert sender.acked == 2
    tell(sender, b"one", Bye(reason=Reason.LEFT, text="no space left"))
    with pytest.raises(PeerLostError, match="no space left"):
        sender.check(0.0)


def test_another_receiver_may_take_over_from_one_that_is_silent_or_gone() -> None:
    sender = a_sender(frames=2)
    tell(sender, b"two", Hello(receiver=OTHER, resume=0, limit=5), now=5.1)
    assert seqs(sender) == [0, 1]
    sender.lost(b"two")
    assert sender.state is SenderState.WAITING
    tell(sender, b"three", Hello(receiver=NAME, resume=1, limit=5), now=5.2)
    assert seqs(sender) == [1]


@pytest.mark.parametrize(
    ("changes", "reason", "match"),
    [
        ({"scan": "scan-2"}, Reason.OTHER_SCAN, "'scan-2' was requested, this is scan 'scan-1'"),
        ({"codecs": ("zstd",)}, Reason.UNABLE, "codec zstd"),
        ({"resume": 1}, Reason.NOT_HELD, "frame 1 was requested, frames 2 to 3 are held"),
        ({"resume": 5}, Reason.NOT_HELD, "frame 5 was requested"),
    ],
)
def test_a_hello_that_cannot_be_served_is_turned_away(changes: dict[str, object], reason: Reason, match: str) -> None:
    sender = a_sender(frames=4)
    tell(sender, b"one", Grant(acked=2, consumed=2, limit=7))
    hello = msgspec.structs.replace(Hello(receiver=NAME, resume=2, limit=7), **changes)
    refusal = turned_away(sender, b"two", hello)
    assert refusal.reason is reason
    assert match in refusal.text
    assert sender.state is SenderState.STREAMING


@pytest.mark.parametrize("parts", [[b"garbage"], [b""], [], [b"x", b"y"]])
def test_garbage_from_a_stranger_costs_the_stream_nothing(parts: list[bytes]) -> None:
    sender = a_sender(frames=2)
    (event,) = sender.receive(b"stranger", parts, 0.0)
    assert isinstance(event, TurnedAway)
    assert sender.state is SenderState.STREAMING
    ((peer, refusal),) = answers(sender)
    assert (peer, refusal.reason) == (b"stranger", Reason.PROTOCOL)


@pytest.mark.parametrize(
    "message",
    [Grant(acked=3, consumed=3, limit=9), Bye(reason=Reason.DONE), End(totals=Totals()), INFO],
    ids=["acked unsent", "done too early", "end", "scan info"],
)
def test_a_receiver_that_breaks_the_protocol_must_greet_again(message: native.Message) -> None:
    sender = a_sender(frames=2)
    (event,) = tell(sender, b"one", message)
    assert isinstance(event, TurnedAway)
    assert sender.state is SenderState.WAITING
    tell(sender, b"one", Hello(receiver=NAME, resume=0, limit=5))
    assert seqs(sender) == [0, 1]


def test_the_end_follows_the_last_frame_and_is_confirmed_again_if_asked_again() -> None:
    sender = a_sender(frames=2)
    sender.omit(Omission(seq=0, indices=(2, 3, 4, 5), reason="decimate", at_s=0.0))
    sender.end()
    (_, omission), (_, end) = answers(sender)
    assert (omission.seq, end.totals.projections, end.totals.dropped) == (2, 2, 4)
    tell(sender, b"one", Grant(acked=3, consumed=3, limit=7))
    assert sender.state is SenderState.STREAMING
    tell(sender, b"one", Bye(reason=Reason.DONE))
    assert sender.state is SenderState.DONE
    assert answers(sender) == [(b"one", Bye(reason=Reason.DONE))]
    tell(sender, b"two", Hello(receiver=NAME, resume=3, limit=7))
    assert [type(m) for _, m in answers(sender)] == [ScanInfo, End]
    tell(sender, b"two", Bye(reason=Reason.DONE))
    assert answers(sender) == [(b"two", Bye(reason=Reason.DONE))]
    sender.check(1e6)


def test_a_producer_out_of_turn_is_told() -> None:
    sender = a_sender(frames=1)
    flat = pack(make_frame(make_scan(), FrameKind.FLAT, 0), sender.info, checksum=False)
    with pytest.raises(ProtocolError, match="flat 0 after the first projection"):
        sender.submit(*flat)
    sender.end()
    assert not sender.room
    with pytest.raises(ProtocolError, match="flat 0 after the end"):
        sender.submit(*flat)


def test_a_receiver_that_leaves_ends_the_sender_with_its_words() -> None:
    sender = a_sender(frames=3)
    tell(sender, b"one", Grant(acked=1, consumed=1, limit=6))
    tell(sender, b"one", Bye(reason=Reason.LEFT, text="disk full"))
    with pytest.raises(PeerLostError, match="with 1 of 3 frames used: disk full"):
        sender.check(0.0)


@pytest.mark.parametrize("reason", [Reason.PROTOCOL, Reason.AWAY])
def test_a_receiver_that_will_come_back_is_waited_for(reason: Reason) -> None:
    sender = a_sender(frames=3)
    assert tell(sender, b"one", Bye(reason=reason, text="a gap"), now=100.0) == [Interrupted("a gap")]
    assert sender.state is SenderState.WAITING
    sender.check(699.9)
    tell(sender, b"two", Hello(receiver=OTHER, resume=0, limit=5), now=100.0)
    assert seqs(sender) == [0, 1, 2]


def test_a_frame_that_is_asked_for_again_is_sent_again() -> None:
    sender = a_sender(frames=3)
    tell(sender, b"one", Again(seq=1))
    assert seqs(sender) == [1]
    assert (sender.asked_again, sender.retransmitted) == (1, 1)
    (event,) = tell(sender, b"one", Again(seq=7))
    assert isinstance(event, TurnedAway)


def test_a_producer_that_was_started_again_skips_what_its_receiver_has() -> None:
    scan = make_scan(darks=0, flats=0)
    sender = a_sender()
    tell(sender, b"one", Hello(receiver=NAME, scan=scan.scan_id, resume=2, limit=5))
    for index in range(4):
        assert sender.room
        sender.submit(*pack(make_frame(scan, FrameKind.PROJECTION, index), sender.info, checksum=True))
    assert seqs(sender) == [2, 3]
    assert sender.totals.projections == 4


def test_a_producer_that_was_started_again_keeps_what_its_receiver_has_not_saved() -> None:
    """Else a receiver that is started again later, from its checkpoint, would be refused."""
    scan = make_scan(darks=0, flats=0)
    sender = a_sender()
    tell(sender, b"one", Hello(receiver=NAME, scan=scan.scan_id, resume=3, saved=1, limit=7))
    for index in range(5):
        sender.submit(*pack(make_frame(scan, FrameKind.PROJECTION, index), sender.info, checksum=True))
        tell(sender, b"one", Hello(receiver=NAME, scan=scan.scan_id, resume=3, saved=1, limit=7))
    assert seqs(sender) == [3, 4]
    sender.lost(b"one")
    tell(sender, b"two", Hello(receiver=OTHER, scan=scan.scan_id, resume=1, saved=1, limit=7))
    assert seqs(sender) == [1, 2, 3, 4]


def test_frames_that_can_be_read_again_leave_the_memory_and_are_still_held() -> None:
    sender = a_sender(hold_bytes=2 * FRAME_BYTES)
    tell(sender, b"one", Hello(receiver=NAME, resume=0, saved=0, limit=9))
    read: list[int] = []
    for index in range(5):
        header, payload = pack(make_frame(make_scan(), FrameKind.PROJECTION, index), sender.info, checksum=True)
        sender.submit(header, payload, lambda index=index, payload=payload: read.append(index) or payload)
        seqs(sender)
        tell(sender, b"one", Grant(acked=0, consumed=index + 1, limit=9))
    assert not sender.forgets
    assert not read
    sender.lost(b"one")
    tell(sender, b"two", Hello(receiver=OTHER, resume=0, saved=0, limit=9), now=100.0)
    assert seqs(sender) == [0, 1, 2, 3, 4]
    assert read == [0, 1, 2]


def test_a_receiver_that_comes_back_while_its_producer_still_skips_is_served() -> None:
    scan = make_scan(darks=0, flats=0)
    sender = a_sender()
    tell(sender, b"one", Hello(receiver=NAME, scan=scan.scan_id, resume=2, limit=5))
    sender.submit(*pack(make_frame(scan, FrameKind.PROJECTION, 0), sender.info, checksum=True))
    assert tell(sender, b"two", Hello(receiver=NAME, scan=scan.scan_id, resume=2, limit=5)) == [Joined(2)]
    for index in range(1, 4):
        sender.submit(*pack(make_frame(scan, FrameKind.PROJECTION, index), sender.info, checksum=True))
    assert seqs(sender) == [2, 3]


def test_used_frames_are_kept_for_a_receiver_that_starts_again_while_memory_allows() -> None:
    sender = a_sender(frames=4, hold_bytes=5 * FRAME_BYTES)
    tell(sender, b"one", Grant(acked=0, consumed=4, limit=9))
    for index in range(4, 7):
        sender.submit(*pack(make_frame(make_scan(), FrameKind.PROJECTION, index), sender.info, checksum=True))
    assert sender.forgets
    sender.lost(b"one")
    assert turned_away(sender, b"two", Hello(receiver=OTHER, resume=1, limit=9)).reason is Reason.NOT_HELD
    tell(sender, b"two", Hello(receiver=OTHER, resume=2, limit=9))
    assert seqs(sender) == [2, 3, 4, 5, 6]


def test_a_sender_that_gives_up_says_why() -> None:
    sender = a_sender(frames=1)
    sender.submit(*pack(make_frame(make_scan(), FrameKind.PROJECTION, 1), sender.info, checksum=True))
    sender.abort("shutter closed")
    (_, frame), (peer, farewell) = answers(sender)
    assert isinstance(frame, native.FrameHeader)
    assert (peer, farewell) == (b"one", Bye(reason=Reason.LEFT, text="shutter closed", totals=sender.totals))
    with pytest.raises(PeerLostError, match="shutter closed"):
        sender.check(0.0)


def test_a_sender_waits_so_long_for_the_first_contact_and_so_long_in_silence() -> None:
    sender = a_sender()
    sender.check(60.0)
    with pytest.raises(PeerLostError, match=r"timed out after 60 s waiting for a receiver$"):
        sender.check(60.1)
    sender.receive(b"stranger", [b"garbage"], 0.0)
    with pytest.raises(PeerLostError, match="the last peer was rejected: received a message that is not"):
        sender.check(60.1)
    sender = a_sender(frames=1)
    tell(sender, b"one", Heartbeat(), now=10.0)
    sender.lost(b"one")
    sender.check(610.0)
    with pytest.raises(PeerLostError, match="no contact with the receiver for 600 s, 0 of 1 frames were used"):
        sender.check(610.1)


def test_a_sender_with_nothing_to_send_sends_heartbeats() -> None:
    sender = a_sender(frames=1)
    assert sender.wait_s(0.25) == 0.75
    assert answers(sender, 0.9) == []
    assert answers(sender, 1.0) == [(b"one", Heartbeat(totals=Totals(projections=1)))]
    assert answers(sender, 1.5) == []


def test_a_scan_that_no_receiver_would_take_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"scan 'scan-1' cannot be streamed: .*rows"):
        a_sender(scan=make_scan(rows=0))
    with pytest.raises(ConfigError, match="unknown codec 'lzw': choose one of none"):
        a_sender(codec="lzw")


# both, against anything

COUNTS = st.integers(0, 12)
TOTALS = st.builds(Totals, darks=COUNTS, flats=COUNTS, projections=COUNTS)
HELLOS = st.builds(
    Hello, receiver=st.sampled_from([NAME, OTHER]), scan=st.sampled_from(["", "scan-1"]), resume=COUNTS, limit=COUNTS
)
GRANTS = st.builds(Grant, acked=COUNTS, consumed=COUNTS, limit=COUNTS, refused=COUNTS)
BYES = st.builds(Bye, reason=st.sampled_from(list(Reason)))
ANYTHING = st.one_of(
    st.builds(
        encoded,
        st.one_of(
            HELLOS,
            GRANTS,
            BYES,
            st.just(Heartbeat()),
            st.builds(Again, seq=COUNTS),
            st.just(INFO),
            st.builds(End, totals=TOTALS),
        ),
    ),
    st.builds(framed, COUNTS, st.sampled_from(list(FrameKind))),
    st.lists(st.binary(max_size=20), max_size=3),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"one", b"two"]), ANYTHING), max_size=30))
def test_a_sender_survives_whatever_callers_say(messages: list[tuple[bytes, list[native.Part]]]) -> None:
    sender = a_sender(frames=4)
    for now, (peer, parts) in enumerate(messages):
        sender.receive(peer, parts, now)
        for _, out in sender.outgoing(now):
            native.decode(out)
        assert 0 <= sender.acked <= sender.totals.next_seq == 4


@settings(deadline=None)
@given(st.lists(ANYTHING, max_size=30))
def test_a_receiver_takes_anything_or_ends_with_a_typed_error(messages: list[list[native.Part]]) -> None:
    receiver = greeted()
    for now, parts in enumerate(messages):
        try:
            receiver.receive(parts, now)
        except PeerError:
            assert receiver.state in (ReceiverState.APART, ReceiverState.OVER)
            if receiver.state is ReceiverState.APART:
                receiver.connect(now)
    assert all(native.decode(parts) for parts in receiver.outgoing(30.0))
