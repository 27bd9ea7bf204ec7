"""The books of both sides: they balance whatever happens, and only a volume with everything is complete."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from ministream.ledger import Ledger, complete, shortfalls
from ministream.model import FrameKind

REASONS = sampled_from(["checksum", "NaN"])


class Stream(RuleBasedStateMachine):
    """A scan on its way, projection by projection; beside the two ledgers only what is in flight is known."""

    def __init__(self) -> None:
        super().__init__()
        self.producer, self.receiver = Ledger(), Ledger()
        self.in_flight = 0

    @rule(count=integers(1, 5))
    def deliver(self, count: int) -> None:
        self.producer.delivered += count

    @precondition(lambda self: self.producer.unsent > 0)
    @rule(policy=sampled_from(["drop-oldest", "decimate"]))
    def drop(self, policy: str) -> None:
        self.producer.drop(policy)

    @precondition(lambda self: self.producer.unsent > 0)
    @rule()
    def send(self) -> None:
        self.producer.sent += 1
        self.in_flight += 1

    @precondition(lambda self: self.in_flight > 0)
    @rule()
    def arrive(self) -> None:
        self.in_flight -= 1
        self.receiver.received += 1

    @rule(kind=sampled_from([FrameKind.FLAT, FrameKind.DARK]), reason=REASONS)
    def refuse_calibration(self, kind: FrameKind, reason: str) -> None:
        before = self.receiver.refused
        self.receiver.refuse(kind, reason)
        assert self.receiver.refused == before

    @precondition(lambda self: self.receiver.waiting > 0)
    @rule(reason=REASONS)
    def refuse(self, reason: str) -> None:
        self.receiver.refuse(FrameKind.PROJECTION, reason)

    @precondition(lambda self: self.receiver.waiting > 0)
    @rule(fate=sampled_from(["used", "repeated"]))
    def take(self, fate: str) -> None:
        setattr(self.receiver, fate, getattr(self.receiver, fate) + 1)

    @rule()
    def update(self) -> None:
        self.receiver.imaged = self.receiver.used

    @rule()
    def write(self) -> None:
        self.receiver.written = self.receiver.imaged

    @invariant()
    def balances(self) -> None:
        assert not self.producer.imbalance()
        assert not self.receiver.imbalance()
        assert Ledger.from_dict(json.loads(json.dumps(self.receiver.as_dict()))) == self.receiver

    @invariant()
    def is_complete_only_with_everything_in_the_volume(self) -> None:
        everything = (
            self.producer.delivered == self.producer.sent == self.receiver.received
            and not self.receiver.refusals
            and self.receiver.written == self.receiver.received - self.receiver.repeated
        )
        assert complete(self.producer, self.receiver) == everything


Stream.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestStream = Stream.TestCase

WHOLE = {"received": 40, "used": 40, "imaged": 40, "written": 40}


@pytest.mark.parametrize(
    ("producer", "receiver", "said"),
    [
        (None, Ledger(**WHOLE), "the stream ended before the producer's END message"),
        (Ledger(delivered=41, sent=40, drops={"drop-oldest": 1}), Ledger(**WHOLE), "1 dropped by the producer"),
        (Ledger(delivered=41, sent=40), Ledger(**WHOLE), "1 delivered but not sent"),
        (Ledger(delivered=42, sent=42), Ledger(**WHOLE), "42 sent, 40 received"),
        (Ledger(delivered=40, sent=40), Ledger(**WHOLE, refusals={"flat": {"NaN": 2}}), "2 flats refused (NaN)"),
        (Ledger(delivered=40, sent=40), Ledger(**WHOLE | {"written": 30}), "10 used but not in the written volume"),
        (Ledger(delivered=40, sent=40), Ledger(received=40), "40 received but not used"),
    ],
)
def test_what_is_missing_is_said(producer, receiver, said) -> None:
    assert any(line.startswith(said) for line in shortfalls(producer, receiver))
    assert not complete(producer, receiver)


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        (Ledger(received=3, used=4), "4 used, 0 repeated and 0 refused of 3 received"),
        (Ledger(received=4, used=4, imaged=3, written=4), "must not increase"),
        (Ledger(delivered=2, sent=2, drops={"decimate": 1}), "2 sent and 1 dropped of 2 delivered"),
        (Ledger(received=4, used=4, mended=5), "must not exceed used"),
        (Ledger(written=-1), "negative"),
    ],
)
def test_books_that_do_not_balance_are_found(ledger, said) -> None:
    assert said in ledger.imbalance()


def test_a_copy_is_a_copy() -> None:
    ledger = Ledger()
    ledger.refuse(FrameKind.FLAT, "NaN")
    copied = ledger.copy()
    ledger.refuse(FrameKind.FLAT, "NaN")
    assert copied.refusals == {"flat": {"NaN": 1}}
