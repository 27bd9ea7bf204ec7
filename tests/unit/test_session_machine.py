"""Session, spool and ledger as a state machine: whatever breaks, every projection is in the volume once, or counted.

A producer whose frames are in an archive, or all in memory; a receiver that uses frames, writes checkpoints, and is
restarted from them; connections that are cut, and bits that change, in any order that hypothesis finds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ministream.errors import ProtocolError
from ministream.ledger import Ledger, shortfalls
from ministream.model import Frame, FrameKind
from ministream.wire import native
from ministream.wire.frames import pack
from ministream.wire.native import Omission, Totals, Written
from ministream.wire.session import (
    Arrived,
    Ended,
    Lost,
    Omitted,
    Patience,
    ReceiverEvent,
    ReceiverSession,
    ReceiverState,
    Refused,
    SenderSession,
    SenderState,
)
from tests.native_stream import flipped, make_frame, make_scan, same

PROJECTIONS = 12
SCAN = make_scan(projections=PROJECTIONS, darks=1, flats=1)
PATIENCE = Patience(first_contact_s=1e6, outage_s=1e6, stall_s=1e6)
# After ten fruitless connections in a row a receiver ends its session, as it should.
MOST_HEADERS_DAMAGED = 5


@dataclass
class Job:
    """What a reconstruction holds; a checkpoint is a copy of it."""

    position: int = 0  # the next frame or omission
    used: list[Frame] = field(default_factory=list)
    refused: list[tuple[FrameKind, str]] = field(default_factory=list)
    refused_seq: list[int] = field(default_factory=list)
    omitted: list[int] = field(default_factory=list)

    def copy(self) -> Job:
        lists = {name: list(getattr(self, name)) for name in ("used", "refused", "refused_seq", "omitted")}
        return replace(self, **lists)

    def take(self, event: ReceiverEvent) -> None:
        match event:
            case Arrived(frame=frame):
                self.used.append(frame)
            case Refused(seq=seq, reason=reason, kind=kind):
                self.refused.append((kind, reason))
                self.refused_seq.append(seq)
            case Omitted(indices=indices):
                self.omitted += indices
        self.position = event.seq + 1


class Stream(RuleBasedStateMachine):
    """Both ends of one scan, and what is on the way between them."""

    # ---- both ends

    @initialize(streams=st.sampled_from([1, 3]), archived=st.booleans(), credit=st.integers(2, 6))
    def begin(self, streams: int, archived: bool, credit: int) -> None:
        self.now, self.archived, self.credit, self.streams = 0.0, archived, credit, streams
        self.script: list[Frame | Omission] = [
            make_frame(SCAN, FrameKind.DARK, 0),
            make_frame(SCAN, FrameKind.FLAT, 0),
        ]
        self.delivered = self.headers_damaged = self.generation = 0
        self.connections = [0] * streams
        self.job, self.checkpoint = Job(), Job()
        self.final: Totals | None = None
        self.start_producer()
        self.start_receiver()
        self.deliver(4)
        self.work(6)

    def start_producer(self) -> None:
        hold_bytes = 2 * SCAN.frame_bytes if self.archived else 2**20
        self.sender = SenderSession(SCAN, patience=PATIENCE, now=self.now, hold_bytes=hold_bytes)
        self.submitted = 0

    def start_receiver(self) -> None:
        held = Totals()
        for seq, entry in enumerate(self.script[: self.job.position]):
            held = held.after(self.header(seq, entry))
        self.receiver = ReceiverSession(
            patience=PATIENCE,
            now=self.now,
            credit_bytes=self.credit * SCAN.frame_bytes,
            max_frame_bytes=2**20,
            scan=SCAN.scan_id if self.job.position else "",
            held=held,
            saves=True,
            reports=True,
            streams=self.streams,
        )
        self.generation += 1
        self.events: deque[ReceiverEvent] = deque()
        self.up: list[deque[list[native.Part]]] = [deque() for _ in range(self.streams)]
        self.down: list[deque[list[native.Part]]] = [deque() for _ in range(self.streams)]
        self.open: set[int] = set()

    @staticmethod
    def header(seq: int, entry: Frame | Omission) -> native.FrameHeader | Omission:
        if isinstance(entry, Omission):
            return entry
        return pack(entry, native.ScanInfo.of(SCAN, codec="none"), checksum=True)[0]

    @property
    def over(self) -> bool:
        return self.receiver.state is ReceiverState.OVER

    def peer(self, stream: int) -> bytes:
        return b"%d.%d.%d" % (self.generation, stream, self.connections[stream])

    def payload_of(self, frame: Frame) -> Callable[[], native.Part]:
        return lambda: pack(frame, self.sender.info, checksum=False)[1]

    # ---- what goes on

    @precondition(lambda self: self.delivered < PROJECTIONS)
    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        """The detector delivers projections."""
        for index in range(self.delivered, min(PROJECTIONS, self.delivered + count)):
            self.script.append(make_frame(SCAN, FrameKind.PROJECTION, index))
            self.delivered += 1

    @precondition(lambda self: self.delivered < PROJECTIONS)
    @rule(count=st.integers(1, 3))
    def drop(self, count: int) -> None:
        """The overflow policy drops some of them."""
        indices = tuple(range(self.delivered, min(PROJECTIONS, self.delivered + count)))
        self.script.append(Omission(seq=0, indices=indices, reason="drop-oldest", at_s=1.7e9))
        self.delivered += len(indices)

    def submit(self) -> None:
        while self.sender.room and self.submitted < len(self.script):
            entry = self.script[self.submitted]
            if isinstance(entry, Omission):
                self.sender.omit(entry)
            else:
                header, payload = pack(entry, self.sender.info, checksum=True)
                self.sender.submit(header, payload, self.payload_of(entry) if self.archived else None)
            self.submitted += 1

    def connect(self, stream: int) -> None:
        if stream in self.open or self.over or (stream and self.receiver.info is None):
            return
        self.open.add(stream)
        self.connections[stream] += 1
        self.receiver.connect(self.now, stream)

    @rule(messages=st.integers(1, 8))
    def carry(self, messages: int) -> None:
        """Messages go both ways over every connection."""
        for peer, parts in self.sender.outgoing(self.now):
            generation, stream, connection = map(int, peer.split(b"."))
            if (generation, connection) == (self.generation, self.connections[stream]) and stream in self.open:
                self.down[stream].append(list(parts))
        for stream in sorted(self.open):
            self.up[stream] += [list(parts) for parts in self.receiver.outgoing(self.now, stream)]
        for stream in range(self.streams):
            for _ in range(min(messages, len(self.up[stream]))):
                self.sender.receive(self.peer(stream), self.up[stream].popleft(), self.now)
            for _ in range(messages):
                if self.down[stream] and not self.over:
                    self.hear(stream)

    def hear(self, stream: int) -> None:
        try:
            self.events += self.receiver.receive(self.down[stream].popleft(), self.now, stream)
        except ProtocolError:
            last_words = self.receiver.outgoing(self.now, stream)
            for parts in last_words:
                self.sender.receive(self.peer(stream), list(parts), self.now)
            self.cut(stream, True)
        assert not any(isinstance(event, Lost) for event in self.events), self.events

    @rule(frames=st.integers(1, 4))
    def use(self, frames: int) -> None:
        """The reconstruction takes frames into its window."""
        for _ in range(frames):
            if not self.events:
                return
            event = self.events.popleft()
            if isinstance(event, Ended):
                self.final = event.totals
                self.receiver.conclude(Written(volume=True, complete=True))
            elif isinstance(event, Arrived | Refused | Omitted):
                self.job.take(event)
                if isinstance(event, Arrived):
                    self.receiver.ack(event.seq, self.now)

    @rule(rounds=st.integers(2, 10))
    def work(self, rounds: int) -> None:
        """Everything goes on for a while."""
        for _ in range(rounds):
            self.submit()
            for stream in range(self.streams):
                self.connect(stream)
            self.carry(8)
            self.use(4)

    @rule()
    def save(self) -> None:
        """A checkpoint is complete."""
        self.checkpoint = self.job.copy()
        self.receiver.intake.save(self.job.position - 1)

    # ---- what breaks

    @rule(stream=st.integers(0, 2), noticed=st.booleans())
    def cut(self, stream: int, noticed: bool) -> None:
        """A connection breaks, with everything on the way; the producer may notice."""
        stream %= self.streams
        if stream not in self.open:
            return
        self.open.discard(stream)
        self.up[stream].clear()
        self.down[stream].clear()
        self.receiver.disconnect(self.now, stream)
        if noticed:
            self.sender.lost(self.peer(stream))

    @rule(stream=st.integers(0, 2), bit=st.integers(0, 4000))
    def damage_pixels(self, stream: int, bit: int) -> None:
        queue = self.down[stream % self.streams]
        if queue and len(queue[0]) == 2:
            queue[0][1] = flipped(queue[0][1], bit)

    @precondition(lambda self: self.headers_damaged < MOST_HEADERS_DAMAGED)
    @rule(stream=st.integers(0, 2), bit=st.integers(0, 4000), upwards=st.booleans())
    def damage_header(self, stream: int, bit: int, upwards: bool) -> None:
        queue = (self.up if upwards else self.down)[stream % self.streams]
        if queue:
            self.headers_damaged += 1
            queue[0][0] = flipped(queue[0][0], bit)

    @precondition(lambda self: self.sender.state is not SenderState.DONE)
    @rule()
    def restart_producer(self) -> None:
        """The same source, or archive, is sent again by another process."""
        for stream in sorted(self.open):
            self.cut(stream, False)
        self.start_producer()

    @precondition(lambda self: self.final is None)
    @rule()
    def restart_receiver(self) -> None:
        """The job is killed, and continues from its checkpoint."""
        self.job = self.checkpoint.copy()
        self.start_receiver()

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for stream in sorted(self.open):
            if self.receiver.silent(self.now, stream):
                self.cut(stream, False)

    # ---- what must hold

    @invariant()
    def the_books_balance(self) -> None:
        projections = [frame.index for frame in self.job.used if frame.kind is FrameKind.PROJECTION]
        assert projections == sorted(set(projections)), "each once and in order"
        assert not set(projections) & set(self.job.omitted)
        assert len(set(self.job.omitted)) == len(self.job.omitted)
        assert self.job.position == len(self.job.used) + len(self.job.refused) + self.omissions(self.job.position)
        assert self.receiver.intake.totals.next_seq - self.job.position <= self.credit

    def omissions(self, stop: int) -> int:
        return sum(isinstance(entry, Omission) for entry in self.script[:stop])

    def teardown(self) -> None:
        """Nothing breaks any more: the scan comes to its end."""
        if not hasattr(self, "script"):
            return
        self.deliver(PROJECTIONS)
        for _ in range(400):
            self.submit()
            if self.submitted == len(self.script) and self.sender.state is not SenderState.DONE:
                self.sender.end()
                self.submitted += 1
            self.work(1)
            self.wait(0.5)
            self.the_books_balance()
            if self.over and self.sender.state is SenderState.DONE:
                break
        else:
            raise AssertionError(f"stuck: {self.sender.state}, {self.receiver.state}, {self.job.position}")
        self.assert_whole()

    def assert_whole(self) -> None:
        """The ledgers of both sides name exactly what the volume lacks."""
        assert self.final is not None
        refused = set(self.job.refused_seq)
        expected = [e for seq, e in enumerate(self.script) if isinstance(e, Frame) and seq not in refused]
        assert all(same(one, other) for one, other in zip(self.job.used, expected, strict=True))
        ours = Ledger(received=self.final.projections)
        for kind, reason in self.job.refused:
            ours.refuse(kind, reason)
        ours.used = sum(frame.kind is FrameKind.PROJECTION for frame in self.job.used)
        ours.imaged = ours.written = ours.used
        delivered = self.final.projections + self.final.dropped
        theirs = Ledger(delivered=delivered, sent=self.final.projections, drops=dict(self.final.drops))
        assert delivered == PROJECTIONS
        assert not ours.imbalance()
        assert not theirs.imbalance()
        lost = ours.refused + theirs.dropped
        assert ours.written + lost == PROJECTIONS
        assert bool(shortfalls(theirs, ours)) == bool(self.job.refused or lost)


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
