"""One scan to receivers that share its rows: all of them in step, each with a stream of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream import partition
from ministream.errors import ConfigError, PeerError, PeerLostError
from ministream.wire import native
from ministream.wire.frames import pack
from ministream.wire.native import Bye, Hello, Reason, Share
from ministream.wire.session import (
    Arrived,
    Ended,
    Joined,
    Patience,
    ReceiverSession,
    ReceiverState,
    SenderBands,
    TurnedAway,
)
from tests.native_stream import make_frames, make_scan

PATIENCE = Patience(first_contact_s=60.0, outage_s=1e6, stall_s=1e6, silence_s=1e6)
SCAN = make_scan(rows=11)


def shares_of(ranks: int, receiving: int) -> list[Share]:
    return [Share(first=g.start, last=g.stop, ranks=ranks) for g in partition.groups(ranks, receiving)]


def a_receiver(share: Share, credit: int = 4) -> ReceiverSession:
    return ReceiverSession(
        patience=PATIENCE, now=0.0, credit_bytes=credit * SCAN.frame_bytes, max_frame_bytes=2**20, share=share
    )


def a_sender(**changes: object) -> SenderBands:
    return SenderBands(SCAN, patience=PATIENCE, now=0.0, **changes)  # type: ignore[arg-type]


class Links:
    """A sender, its receivers, and a connection to each, which may be cut."""

    def __init__(self, shares: list[Share], credit: int = 4) -> None:
        self.sender = a_sender()
        self.receivers = [a_receiver(share, credit) for share in shares]
        self.events: list[list[object]] = [[] for _ in shares]
        self.connections = [0] * len(shares)
        self.source = list(make_frames(SCAN))
        self.submitted = 0
        self.most_apart = 0
        for receiver in self.receivers:
            receiver.connect(0.0)

    def peer(self, k: int) -> bytes:
        return b"%d.%d" % (k, self.connections[k])

    def step(self, k: int, *, consume: bool = True) -> None:
        """Move what is due between the sender and receiver `k`, and one frame into the sender."""
        if self.sender.room and self.submitted < len(self.source):
            frame = self.source[self.submitted]
            self.sender.submit([pack(frame, band.info, checksum=True) for band in self.sender.bands])
            self.submitted += 1
            if self.submitted == len(self.source):
                self.sender.end()
        receiver = self.receivers[k]
        for parts in receiver.outgoing(0.0):
            self.sender.receive(self.peer(k), parts, 0.0)
        for peer, parts in self.sender.outgoing(0.0):
            to = int(peer.split(b".")[0])
            if peer == self.peer(to) and self.receivers[to].state is not ReceiverState.OVER:
                self.events[to] += self.receivers[to].receive(parts, 0.0)
        if consume and receiver.intake.consumed < receiver.intake.totals.next_seq:
            receiver.ack(receiver.intake.consumed, 0.0)
        arrived = [receiver.intake.totals.frames for receiver in self.receivers]
        self.most_apart = max(
            self.most_apart, max(arrived) - min(receiver.intake.consumed for receiver in self.receivers)
        )

    def cut(self, k: int) -> None:
        if self.receivers[k].state is not ReceiverState.OVER:
            self.receivers[k].disconnect(0.0)
            self.connections[k] += 1
            self.receivers[k].connect(0.0)

    def settle(self) -> None:
        for _ in range(200):
            for k in range(len(self.receivers)):
                self.step(k)
            if self.sender.done and all(receiver.state is ReceiverState.OVER for receiver in self.receivers):
                return
        raise AssertionError([receiver.state for receiver in self.receivers])


def whole(events: list[list[object]]) -> list[np.ndarray]:
    """The frames that the receivers have got, put together."""
    arrived = [[event.frame.pixels for event in band if isinstance(event, Arrived)] for band in events]
    return [np.concatenate(parts) for parts in zip(*arrived, strict=True)]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_bands_together_are_the_scan_whatever_happens_to_their_connections(data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, SCAN.rows))
    shares = shares_of(ranks, data.draw(st.integers(1, min(4, ranks))))
    links = Links(shares, data.draw(st.integers(0, 12)))
    which = st.integers(0, len(shares) - 1)
    for cut, k in data.draw(st.lists(st.tuples(st.integers(0, 5), which), max_size=100)):
        if cut:
            links.step(k, consume=cut > 2)
        else:
            links.cut(k)
    links.settle()
    assert all(np.array_equal(a, b.pixels) for a, b in zip(whole(links.events), links.source, strict=True))
    for events, band in zip(links.events, links.sender.bands, strict=True):
        assert events[len(links.source) :] == [Ended(band.totals)]


def test_the_slowest_receiver_sets_the_pace_of_all() -> None:
    links = Links(shares_of(2, 2), credit=2)
    for _ in range(50):
        links.step(0)
        links.step(1, consume=False)
    credit = 2 * SCAN.rows // 5  # frames of the larger band, in bytes of two whole ones
    assert 2 <= links.submitted <= credit + 1
    links.settle()


def test_nothing_is_sent_until_every_row_is_asked_for() -> None:
    links = Links(shares_of(3, 3))
    for _ in range(5):
        links.step(0)
        links.step(1)
    assert not links.sender.complete
    assert not links.sender.room
    links.settle()


def test_rows_are_sent_without_a_copy() -> None:
    sender = a_sender()
    sender.receive(b"a", [native.encode(hello(Share(first=1, last=3, ranks=4)))], 0.0)
    frame = next(make_frames(SCAN))
    _, payload = pack(frame, sender.bands[0].info, checksum=True)
    assert np.shares_memory(np.asarray(payload), frame.pixels)


def hello(share: Share, name: str = "0") -> Hello:
    return Hello(receiver=name * 32, resume=0, limit=0, share=share)


def answer(sender: SenderBands, peer: bytes, message: native.Message, now: float = 0.0) -> native.Message:
    sender.receive(peer, [native.encode(message)], now)
    return next(native.decode(parts) for to, parts in sender.outgoing(now) if to == peer)


@pytest.mark.parametrize(
    ("share", "problem"),
    [
        (Share(first=0, last=1, ranks=12), "12 ranks cannot share 11 detector rows"),
        (Share(first=2, last=2, ranks=4), "are not among 4"),
        (Share(first=3, last=5, ranks=4), "are not among 4"),
    ],
)
def test_rows_that_cannot_be_shared_so_are_refused_and_the_receiver_knows_why(share: Share, problem: str) -> None:
    refusal = answer(a_sender(), b"a", hello(share))
    assert isinstance(refusal, Bye)
    assert refusal.reason is Reason.SHARE
    receiver = a_receiver(share)
    receiver.connect(0.0)
    with pytest.raises(ConfigError, match=problem):
        receiver.receive([native.encode(refusal)], 0.0)


def test_a_row_is_sent_to_one_receiver_only() -> None:
    sender = a_sender()
    sender.receive(b"a", [native.encode(hello(Share(first=0, last=2, ranks=4)))], 0.0)
    sender.outgoing(0.0)
    for share in (Share(), Share(first=1, last=4, ranks=4), Share(first=1, last=2, ranks=2)):
        refusal = answer(sender, b"b", hello(share, "1"))
        assert isinstance(refusal, Bye)
        assert refusal.reason is Reason.BUSY
    assert not sender.complete


def test_a_receiver_that_has_gone_makes_way_for_another_deal_before_anything_is_sent() -> None:
    sender = a_sender()
    sender.receive(b"a", [native.encode(hello(Share(first=0, last=2, ranks=4)))], 0.0)
    sender.lost(b"a")
    assert sender.receive(b"b", [native.encode(hello(Share(), "1"))], 0.0) == [Joined(0)]
    assert sender.complete
    sender.lost(b"b")
    (refused,) = sender.receive(b"c", [native.encode(hello(Share(first=0, last=2, ranks=4), "2"))], 0.0)
    assert isinstance(refused, TurnedAway)
    assert "another distribution of its rows" in refused.text


def test_other_rows_than_asked_for_are_an_error() -> None:
    receiver = a_receiver(Share(first=1, last=2, ranks=2))
    receiver.connect(0.0)
    info = native.ScanInfo.of(SCAN, codec="none", band=partition.slabs(SCAN.rows, 2)[0])
    with pytest.raises(PeerError, match="sends 6 rows from 0 on, 5 rows from 6 on"):
        receiver.receive([native.encode(info)], 0.0)


def test_bands_that_nobody_asks_for_are_named() -> None:
    sender = a_sender()
    sender.receive(b"a", [native.encode(hello(Share(first=1, last=2, ranks=2)))], 0.0)
    with pytest.raises(PeerLostError, match=r"timed out after 60 s .* all 11 rows: only rows 6 to 10 were requested"):
        sender.check(61.0)


def test_a_receiver_that_leaves_ends_the_stream_of_all() -> None:
    links = Links(shares_of(2, 2))
    for _ in range(3):
        links.step(0)
        links.step(1)
    links.receivers[1].leave("no space left")
    (farewell,) = links.receivers[1].outgoing(0.0)
    links.sender.receive(links.peer(1), farewell, 0.0)
    with pytest.raises(PeerLostError, match="no space left"):
        links.sender.check(0.0)
    *_, last = [native.decode(parts) for peer, parts in links.sender.outgoing(0.0) if peer == links.peer(0)]
    assert isinstance(last, Bye)
    assert last.reason is Reason.LEFT
    assert "no space left" in last.text


def test_an_end_before_anyone_has_come_is_told_to_all() -> None:
    links = Links(shares_of(2, 2))
    links.source, links.submitted = [], 0
    links.sender.end()
    links.settle()
    assert [band[-1] for band in links.events] == [Ended(native.Totals())] * 2
