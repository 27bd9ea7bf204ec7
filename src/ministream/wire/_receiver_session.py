"""The receiver's session of the native wire, without a socket; its driver is `transport._native.frame_receiver`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from ministream.errors import (
    ConfigError,
    FrameError,
    MinistreamError,
    PeerError,
    PeerLostError,
    ProtocolError,
    VersionError,
)
from ministream.wire import frames, native
from ministream.wire._events import (
    Arrived,
    AskedAgain,
    Ended,
    Lost,
    Omitted,
    Patience,
    ReceiverEvent,
    Refused,
    Stalled,
    frames_within,
)
from ministream.wire._states import RECEIVER_TURNS, ReceiverState, trigger
from ministream.wire.native import (
    AT_SOURCE,
    Again,
    Bye,
    End,
    FrameHeader,
    Grant,
    Heartbeat,
    Hello,
    Message,
    Omission,
    Part,
    Reason,
    ScanInfo,
    Share,
    Totals,
    Written,
)

# After a frame this slow, the next one may take even longer.
_MARGIN = 3
# A frame damaged this often was damaged before it was sent.
_ATTEMPTS = 3
# Consecutive connections that end with a protocol error and bring no frame: another one would fail too.
_FRUITLESS = 10
_DAMAGED = frozenset({"checksum", "codec"})
_OPEN = (ReceiverState.CALIBRATION, ReceiverState.DATA, ReceiverState.ENDED)
# After these a new connection may succeed.
_PASSING = (Reason.BUSY, Reason.PROTOCOL, Reason.AWAY)
_REFUSALS: dict[Reason, type[MinistreamError]] = {Reason.LEFT: PeerLostError, Reason.SHARE: ConfigError}


class ReceiverSession:
    """Takes one scan from one producer, over as many connections as needed.

    `now` is a monotonic time in seconds. `credit_bytes` bounds the pixels that are in flight, waiting, or not yet
    used, but two frames are always allowed. `scan` is the id of the scan wanted, empty for any; `held` what a
    restarted receiver already has of it; `share` says which of its rows.

    With `saves` the producer keeps frames until `save` confirms them, else until they are used. With
    `reports` the session continues after the end of the stream until `conclude` reports the outcome.
    """

    def __init__(
        self,
        *,
        patience: Patience,
        now: float,
        credit_bytes: int,
        max_frame_bytes: int,
        scan: str = "",
        held: Totals | None = None,
        share: Share | None = None,
        saves: bool = False,
        reports: bool = False,
    ) -> None:
        self.state = ReceiverState.APART
        self.info: ScanInfo | None = None
        self.totals = held or Totals()
        self.consumed = self.saved = self.totals.next_seq
        self.received = 0
        self.refused = 0
        self.asked_again = 0
        self.repeated = 0
        self.departed = False  # this end has said Bye, on this connection, before the stream's end
        self._patience = patience
        self._credit_bytes = credit_bytes
        self._max_frame_bytes = max_frame_bytes
        self._wanted = scan
        self._share = share or Share()
        self._saves, self._concluded = saves, not reports
        self._outcome: Written | None = None
        self._name = secrets.token_hex(16)
        self._window = 0
        self._needless: set[int] = set()  # frames above `consumed` that nobody will acknowledge
        self._damaged_seq, self._attempts = -1, 0
        self._awaited: int | None = None
        self._announced: Totals | None = None
        self._ended = False
        self._granted: Grant | None = None
        self._confirmed = False
        self._fruitless = 0
        self._outbox: list[tuple[Part, ...]] = []
        self._heard_at = now
        self._connected_at = now
        self._sent_at = now
        self._frame_due_since = now
        self._stall_told = False
        self._gap_s = 0.0
        self._silence_s = patience.silence_s

    # what the application does

    def ack(self, seq: int, now: float) -> None:
        """Every frame up to and including `seq` has been used."""
        if seq >= self.totals.next_seq:
            raise ValueError(f"frame {seq} acknowledged, {self.totals.next_seq} have arrived")
        if self._starved:
            self._frame_due_since = now
        self._advance(seq + 1)

    def save(self, seq: int) -> None:
        """Every frame up to and including `seq` is safe: a receiver that is started again does not need it."""
        self.saved = max(self.saved, min(seq + 1, self.consumed))

    def conclude(self, outcome: Written | None) -> None:
        """The job has finished with the scan; None: no outcome to report."""
        self._outcome, self._concluded = outcome, True

    def leave(self, text: str, *, returns: bool = False) -> None:
        """Stop before the end; the producer gets the reason, and whether this job will be restarted."""
        self._depart(Reason.AWAY if returns else Reason.LEFT, text)
        self.state = ReceiverState.OVER

    # what the transport does

    def connect(self, now: float) -> None:
        """A new connection is being made: say Hello on it, and resume where the last one broke."""
        self.state = ReceiverState.GREETING
        self._connected_at = now
        self._granted = None
        self._confirmed = False
        self.departed = False
        self._awaited = None  # the frame requested again comes first on the new connection
        scan = self.info.scan_id if self.info else self._wanted
        hello = Hello(
            receiver=self._name,
            scan=scan,
            resume=self.totals.next_seq,
            limit=max(self._limit, self.totals.next_seq),
            codecs=tuple(frames.CODECS),
            share=self._share,
        )
        self._outbox = [(native.encode(hello),)]

    def disconnect(self, now: float) -> None:
        """The connection is gone."""
        # The link may only be slow, with a frame in transit: allow the next connection more time.
        if self.silent(now):
            self._silence_s *= 2
        if self.state is not ReceiverState.OVER:
            self.state = ReceiverState.APART

    def receive(self, parts: Sequence[Part], now: float) -> list[ReceiverEvent]:
        """Take one message.

        Raises ProtocolError when this connection must end, to be followed by another. Any other error, and
        VersionError, ends the session: PeerError when the producer refuses this receiver or describes a scan that it
        cannot take, ConfigError when the scan's rows cannot be shared as requested.
        """
        try:
            message = native.decode(parts)
            if self._awaited is not None and self._overtaken(message):
                return []
            following = RECEIVER_TURNS[self.state].get(trigger(message))
            if following is None:
                raise ProtocolError(f"received {type(message).__name__} out of turn, in {self.state.name.lower()}")
            self.state = following
            if not isinstance(message, Bye):  # an end that only says Bye is not there
                self._gap_s, self._heard_at = now - self._last_sign_at, now
            return self._take(message, parts, now)
        except ProtocolError as error:
            return self._broken(error)
        except MinistreamError as error:
            self._depart(Reason.UNABLE, str(error))
            self.state = ReceiverState.OVER
            raise

    def outgoing(self, now: float) -> list[tuple[Part, ...]]:
        """Everything to be sent now, in order."""
        out, self._outbox = self._outbox, []
        if self.state in _OPEN:
            out += [(native.encode(message),) for message in self._due()]
            if not out and now - self._sent_at >= self._patience.heartbeat_s:
                out.append((native.encode(Heartbeat()),))
        if out:
            self._sent_at = now
        return out

    def silent(self, now: float) -> bool:
        """Whether this connection counts as lost because nothing arrives over it."""
        return now - self._last_sign_at > self._silence_s

    def check(self, now: float) -> list[ReceiverEvent]:
        """Check the timeouts. Raises PeerLostError when the producer never connected."""
        if self._ended or self.state is ReceiverState.OVER:
            return []
        if self.info is None:
            if now - self._heard_at > self._patience.first_contact_s:
                self.state = ReceiverState.OVER
                raise PeerLostError(f"timed out after {self._patience.first_contact_s:g} s waiting for the producer")
            return []
        if now - self._heard_at > self._patience.outage_s:
            return self._lose(f"no contact with the producer for {self._patience.outage_s:g} s")
        if not self._starved and not self._stall_told and now - self._frame_due_since > self._patience.stall_s:
            self._stall_told = True
            return [Stalled(now - self._frame_due_since)]
        return []

    def wait_s(self, now: float) -> float:
        """Seconds until `outgoing`, `silent` or `check` must be called again, if nothing happens before."""
        patience = self._patience
        due = [now + patience.heartbeat_s]
        if not self._ended:
            due = [self._heard_at + (patience.outage_s if self.info else patience.first_contact_s)]
        if self.state is not ReceiverState.APART:
            due.append(self._last_sign_at + self._silence_s)
        if self.state in _OPEN:
            due.append(self._sent_at + patience.heartbeat_s)
            if not (self._ended or self._stall_told or self._starved):
                due.append(self._frame_due_since + patience.stall_s)
        return max(0.0, min(due) - now)

    @property
    def ended(self) -> bool:
        """Whether the producer's end has arrived."""
        return self._ended

    @property
    def exhausted(self) -> bool:
        """Whether everything that the producer sent is here and used."""
        return self._ended and self.consumed == self.totals.next_seq

    # the protocol

    @property
    def _last_sign_at(self) -> float:
        """When this connection last showed that it is alive."""
        return max(self._connected_at, self._heard_at)

    @property
    def _limit(self) -> int:
        return self.consumed + self._window

    @property
    def _starved(self) -> bool:
        """Whether this end's credit is what holds frames back."""
        return self.totals.next_seq >= self._limit

    def _due(self) -> list[Message]:
        """What has not been reported to the producer yet."""
        due: list[Message] = []
        acked = self.saved if self._saves and not self._concluded else self.consumed
        grant = Grant(acked=acked, consumed=self.consumed, limit=self._limit, refused=self.refused)
        if grant != self._granted:
            self._granted = grant
            due.append(grant)
        if self.state is ReceiverState.ENDED and self.exhausted and self._concluded and not self._confirmed:
            self._confirmed = True
            due += [message for message in (self._outcome, Bye(reason=Reason.DONE)) if message is not None]
        return due

    def _take(self, message: Message, parts: Sequence[Part], now: float) -> list[ReceiverEvent]:
        match message:
            case ScanInfo():
                return self._learn(message, now)
            case FrameHeader() | Omission():
                return [self._next(message, parts, now)] if self._expected(message.seq) else []
            case End(totals=totals):
                return self._finish(totals)
            case Heartbeat(totals=totals):
                self._announced = totals or self._announced
            case Bye(reason=reason, text=text, totals=totals) if reason is not Reason.DONE:
                self._announced = totals or self._announced
                return self._dismissed(reason, text)
        return []

    def _learn(self, info: ScanInfo, now: float) -> list[ReceiverEvent]:
        if info.first != self.totals.next_seq:
            raise ProtocolError(f"expected the producer to resume at frame {self.totals.next_seq}, not {info.first}")
        if self.info is not None and replace(info, first=self.info.first) != self.info:
            return self._lose(f"the producer has changed its description of scan {self.info.scan_id!r}")
        if info.frame_bytes > self._max_frame_bytes:
            raise PeerError(
                f"frames of {info.band[1]} × {info.cols} {info.dtype} take {info.frame_bytes} bytes each, "
                f"{self._max_frame_bytes} are allowed"
            )
        if info.codec not in frames.CODECS:
            raise PeerError(f"the producer packs frames with the unknown codec {info.codec!r}")
        try:
            band = self._share.band(info.rows)
        except ProtocolError as error:
            raise ConfigError(str(error)) from None
        if info.band != (band.first, band.rows):
            asked = f"{band.rows} rows from {band.first} on were requested"
            raise PeerError(f"the producer sends {info.band[1]} rows from {info.band[0]} on, {asked}")
        self.info = info
        self._window = frames_within(self._credit_bytes, info.frame_bytes)
        self._frame_due_since = now
        if self.totals.projections or self.totals.omissions:
            self.state = ReceiverState.DATA
        return []

    def _overtaken(self, message: Message) -> bool:
        """Whether this was in transit before the frame that was requested again."""
        if isinstance(message, FrameHeader | Omission):
            return message.seq != self._awaited
        return isinstance(message, End)

    def _expected(self, seq: int) -> bool:
        """Whether frame `seq` comes next; False: it has already arrived. Raises ProtocolError for any other."""
        due = self.totals.next_seq
        if seq < due:
            self.repeated += 1
            return False
        if seq > due:
            raise ProtocolError(f"expected frame {due}, received {seq}")
        if self._starved:
            raise ProtocolError(f"received frame {seq}, the credit ends below {self._limit}")
        return True

    def _next(self, entry: FrameHeader | Omission, parts: Sequence[Part], now: float) -> ReceiverEvent:
        if isinstance(entry, FrameHeader):
            return self._accept(entry, parts[1], now)
        self._progress(entry, now)
        self._skip(entry.seq)
        return Omitted(entry.seq, entry.indices, entry.reason, entry.at_s)

    def _accept(self, header: FrameHeader, payload: Part, now: float) -> ReceiverEvent:
        assert self.info is not None
        try:
            frame = frames.unpack(header, payload, self.info)
        except FrameError as error:
            if error.reason in _DAMAGED and self._may_ask_again(header.seq):
                return self._ask_again(header.seq, str(error))
            self._progress(header, now)
            self.refused += 1
            self._skip(header.seq)
            return Refused(header.seq, error.reason, str(error), header.kind)
        self._progress(header, now)
        self.received += 1
        return Arrived(header.seq, frame)

    def _progress(self, entry: FrameHeader | Omission, now: float) -> None:
        self.totals = self.totals.after(entry)
        self._awaited = None
        self._fruitless = 0
        self._silence_s = max(self._patience.silence_s, _MARGIN * self._gap_s)
        self._frame_due_since = now
        self._stall_told = False

    def _may_ask_again(self, seq: int) -> bool:
        self._attempts = self._attempts + 1 if seq == self._damaged_seq else 1
        self._damaged_seq = seq
        return self._attempts < _ATTEMPTS

    def _ask_again(self, seq: int, text: str) -> AskedAgain:
        """Go back to `seq`; what the producer sent after it is in transit and arrives twice."""
        self.asked_again += 1
        self._awaited = seq
        self._outbox.append((native.encode(Again(seq=seq)),))
        return AskedAgain(seq, text)

    def _skip(self, seq: int) -> None:
        self._needless.add(seq)
        self._advance(self.consumed)

    def _advance(self, consumed: int) -> None:
        self.consumed = max(self.consumed, consumed)
        while self.consumed in self._needless:
            self._needless.discard(self.consumed)
            self.consumed += 1

    def _finish(self, totals: Totals) -> list[ReceiverEvent]:
        if totals != self.totals.without(totals.drops.get(AT_SOURCE, 0)):
            raise ProtocolError(f"the producer counts {totals}, {self.totals} arrived")
        if self._ended:
            return []
        self._ended = True
        return [Ended(totals)]

    def _dismissed(self, reason: Reason, text: str) -> list[ReceiverEvent]:
        if reason in _PASSING:
            raise ProtocolError(f"the producer ended the connection: {text}")
        if self._ended:
            return []
        told = f"the producer aborted: {text}" if reason is Reason.LEFT else f"the producer rejected this end: {text}"
        if self.info is not None:
            return self._lose(told)
        self.state = ReceiverState.OVER
        raise _REFUSALS.get(reason, PeerError)(told)

    def _broken(self, error: ProtocolError) -> list[ReceiverEvent]:
        """This connection ends with `error`; so does the session where a new connection would not help."""
        if self.state is not ReceiverState.OVER:  # else the producer has said Bye
            self._depart(Reason.PROTOCOL, str(error))
            self._fruitless += 1
        self.state = ReceiverState.APART
        if self._fruitless < _FRUITLESS and not isinstance(error, VersionError):
            raise error
        if self.info is not None:
            return [] if self._ended else self._lose(str(error))
        self.state = ReceiverState.OVER
        raise error if isinstance(error, VersionError) else PeerError(str(error))

    def _lose(self, text: str) -> list[ReceiverEvent]:
        self.state = ReceiverState.OVER
        return [Lost(text, self._announced)]

    def _depart(self, reason: Reason, text: str) -> None:
        if self.state not in (ReceiverState.APART, ReceiverState.OVER):
            self._outbox.append((native.encode(Bye(reason=reason, text=native.line(text))),))
            self.departed = True
