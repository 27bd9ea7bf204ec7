"""What a receiver has of a scan: frames are put in order, counted, and refused or asked for again where damaged."""

from __future__ import annotations

from ministream.errors import FrameError, ProtocolError
from ministream.model import FrameKind
from ministream.wire import frames
from ministream.wire._events import Arrived, AskedAgain, Omitted, ReceiverEvent, Refused
from ministream.wire.native import AT_SOURCE, FrameHeader, Omission, Part, ScanInfo, Totals

# A frame damaged this often was damaged before it was sent.
_ATTEMPTS = 3
_DAMAGED = frozenset({"checksum", "codec"})


class Intake:
    """Takes the frames of one scan, in any order where it is `striped` over several connections.

    Frames that are early wait, and come out in the order of their numbers. `limit` bounds them: what waits here and
    what is not used yet are together what the credit allows. `totals` counts what has come out, `consumed` and `saved`
    how far that is used and safe.
    """

    def __init__(self, held: Totals, *, striped: bool) -> None:
        self.totals = held
        self.consumed = self.saved = held.next_seq
        self.received = self.refused = self.asked_again = self.repeated = 0
        self.awaited: set[int] = set()  # frames that were damaged and have not come again
        self.unasked: set[int] = set()  # those of them that the producer must be told about
        self._striped = striped
        self._early: dict[int, tuple[FrameHeader | Omission, ReceiverEvent]] = {}
        self._attempts: dict[int, int] = {}
        self._needless: set[int] = set()  # frames above `consumed` that nobody will acknowledge

    @property
    def gapless(self) -> bool:
        """Whether a frame that is missing now cannot come any more: there is one connection, and it keeps the order."""
        return not self._striped and not self.awaited

    def ack(self, seq: int) -> None:
        """Every frame up to and including `seq` has been used."""
        if seq >= self.totals.next_seq:
            raise ValueError(f"frame {seq} acknowledged, {self.totals.next_seq} have arrived")
        self._advance(seq + 1)

    def save(self, seq: int) -> None:
        """Every frame up to and including `seq` is safe."""
        self.saved = max(self.saved, min(seq + 1, self.consumed))

    def restarts(self) -> None:
        """A connection begins, and it is the only one: everything from `totals.next_seq` on comes over it."""
        self.awaited.clear()
        self.unasked.clear()

    def ask(self) -> None:
        """A connection was lost, perhaps with what was asked over it."""
        self.unasked |= self.awaited

    def take(self, entry: FrameHeader | Omission, payload: Part, info: ScanInfo, limit: int) -> list[ReceiverEvent]:
        """One frame or omission from a connection; the events that it makes possible, in order.

        Raises ProtocolError for a frame at or above `limit`, one that leaves a gap, or calibration after projections.
        """
        if not self._expected(entry.seq, limit):
            return []
        event = self._event(entry, payload, info)
        if isinstance(event, AskedAgain):
            return [event]
        self.awaited.discard(entry.seq)
        self.unasked.discard(entry.seq)
        self._attempts.pop(entry.seq, None)
        self._early[entry.seq] = entry, event
        return self._in_order()

    def ends_with(self, totals: Totals) -> bool:
        """Whether everything that these totals of the producer count is here. Raises ProtocolError if it cannot be."""
        if totals.next_seq > self.totals.next_seq and not self.gapless:
            return False
        if totals != self.totals.without(totals.drops.get(AT_SOURCE, 0)):
            raise ProtocolError(f"the producer counts {totals}, {self.totals} arrived")
        return True

    def _expected(self, seq: int, limit: int) -> bool:
        """Whether frame `seq` is new."""
        due = self.totals.next_seq
        if seq < due or seq in self._early:
            self.repeated += 1
            return False
        if seq > due and self.gapless:
            raise ProtocolError(f"expected frame {due}, received {seq}")
        if seq >= limit:
            raise ProtocolError(f"received frame {seq}, the credit ends below {limit}")
        return True

    def _event(self, entry: FrameHeader | Omission, payload: Part, info: ScanInfo) -> ReceiverEvent:
        if isinstance(entry, Omission):
            return Omitted(entry.seq, entry.indices, entry.reason, entry.at_s)
        try:
            return Arrived(entry.seq, frames.unpack(entry, payload, info))
        except FrameError as error:
            if error.reason in _DAMAGED and self._may_ask_again(entry.seq):
                self.asked_again += 1
                self.awaited.add(entry.seq)
                self.unasked.add(entry.seq)
                return AskedAgain(entry.seq, str(error))
            return Refused(entry.seq, error.reason, str(error), entry.kind)

    def _may_ask_again(self, seq: int) -> bool:
        self._attempts[seq] = self._attempts.get(seq, 0) + 1
        return self._attempts[seq] < _ATTEMPTS

    def _in_order(self) -> list[ReceiverEvent]:
        events: list[ReceiverEvent] = []
        while (found := self._early.pop(self.totals.next_seq, None)) is not None:
            entry, event = found
            if self._out_of_turn(entry):
                if not events:
                    raise ProtocolError(f"frame {entry.seq} of the calibration comes after the first projection")
                self.awaited.add(entry.seq)  # once it comes again, its connection ends
                self.unasked.add(entry.seq)
                break
            self.totals = self.totals.after(entry)
            self._count(event)
            events.append(event)
        return events

    def _out_of_turn(self, entry: FrameHeader | Omission) -> bool:
        begun = self.totals.projections or self.totals.omissions
        return isinstance(entry, FrameHeader) and entry.kind is not FrameKind.PROJECTION and bool(begun)

    def _count(self, event: ReceiverEvent) -> None:
        match event:
            case Arrived():
                self.received += 1
            case Refused(seq=seq):
                self.refused += 1
                self._skip(seq)
            case Omitted(seq=seq):
                self._skip(seq)

    def _skip(self, seq: int) -> None:
        self._needless.add(seq)
        self._advance(self.consumed)

    def _advance(self, consumed: int) -> None:
        self.consumed = max(self.consumed, consumed)
        while self.consumed in self._needless:
            self._needless.discard(self.consumed)
            self.consumed += 1
