"""The receiver's session of the native wire, without a socket; its driver is `transport._native.frame_receiver`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from ministream.errors import ConfigError, MinistreamError, PeerError, PeerLostError, ProtocolError, VersionError
from ministream.wire import frames, native
from ministream.wire._events import Ended, Lost, Patience, ReceiverEvent, Stalled, frames_within
from ministream.wire._intake import Intake
from ministream.wire._receiver_stream import ReceiverStream
from ministream.wire._states import RECEIVER_TURNS, ReceiverState, trigger
from ministream.wire.native import (
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

# Of a scan that is striped, arrivals of this part of the window are worth telling when nothing was used meanwhile.
_SHARE = 8
# After a frame this slow, the next one may take even longer.
_MARGIN = 3
# Consecutive connections that end with a protocol error and bring no frame: another one would fail too.
_FRUITLESS = 10
_OPEN = (ReceiverState.STREAMING, ReceiverState.ENDED)
# After these a new connection may succeed.
_PASSING = (Reason.BUSY, Reason.PROTOCOL, Reason.AWAY)
_REFUSALS: dict[Reason, type[MinistreamError]] = {Reason.LEFT: PeerLostError, Reason.SHARE: ConfigError}


class ReceiverSession:
    """Takes one scan from one producer, striped over `streams` connections, each made again as often as needed.

    `stream` is the number of a connection. `now` is a monotonic time in seconds. `credit_bytes` bounds the pixels that
    are in flight, waiting, or not yet used, but two frames are always allowed. `scan` is the id of the scan wanted,
    empty for any; `held` what a restarted receiver already has of it; `share` says which of its rows.

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
        streams: int = 1,
    ) -> None:
        self.info: ScanInfo | None = None
        self.intake = Intake(held or Totals(), striped=streams > 1)
        self._patience = patience
        self._credit_bytes = credit_bytes
        self._max_frame_bytes = max_frame_bytes
        self._wanted = scan
        self._share = share or Share()
        self._saves, self._concluded = saves, not reports
        self._outcome: Written | None = None
        self._name = secrets.token_hex(16)
        self._window = 0
        self._streams = [ReceiverStream(now, now, now) for _ in range(streams)]
        self._over = False
        self._announced: Totals | None = None
        self._final: Totals | None = None  # from End, while frames are missing
        self._farewell: Bye | None = None  # from a producer that leaves, while frames may be in transit
        self._ended = False
        self._granted: Grant | None = None
        self._told = 0  # frames that the last Grant said have arrived
        self._confirmed = False
        self._fruitless = 0
        self._heard_at = now
        self._frame_due_since = now
        self._stall_told = False
        self._gap_s = 0.0
        self._silence_s = patience.silence_s

    @property
    def state(self) -> ReceiverState:
        """That of the furthest connection."""
        furthest = max((stream.state for stream in self._streams), key=lambda state: state.value)
        return ReceiverState.OVER if self._over else furthest

    # what the application does

    def ack(self, seq: int, now: float) -> None:
        """Every frame up to and including `seq` has been used."""
        if self._starved and seq < self.intake.totals.next_seq:
            self._frame_due_since = now
        self.intake.ack(seq)

    def conclude(self, outcome: Written | None) -> None:
        """The job has finished with the scan; None: no outcome to report."""
        self._outcome, self._concluded = outcome, True

    def leave(self, text: str, *, returns: bool = False) -> None:
        """Stop before the end; the producer gets the reason, and whether this job will be restarted."""
        self._depart(Reason.AWAY if returns else Reason.LEFT, text)
        self._over = True

    # what the transport does

    @property
    def speaker(self) -> int | None:
        """The stream over which this end tells the producer what it has: the one that brought the end, or the first.

        None without a connection.
        """
        speaking = [number for number, stream in enumerate(self._streams) if stream.state is self.state]
        return speaking[0] if self.state in _OPEN else None

    @property
    def parting(self) -> bool:
        """Whether the producer leaves: another connection would not help, but frames may still be in transit."""
        return self._farewell is not None

    def connect(self, now: float, stream: int = 0) -> None:
        """A new connection is being made: say Hello on it, and resume where the last one broke."""
        this = self._streams[stream]
        this.begin(now, self.intake.totals.next_seq)
        self._forget_said()
        if all(other.is_apart for other in self._streams if other is not this):
            self.intake.restarts()
            self._final = None
        hello = Hello(
            receiver=self._name,
            scan=self.info.scan_id if self.info else self._wanted,
            resume=this.resume,
            saved=self.intake.saved if self._saves and not self._concluded else None,
            limit=max(self._limit, this.resume),
            stream=stream,
            streams=len(self._streams),
            lost=self._lost,
            codecs=tuple(frames.CODECS),
            share=self._share,
        )
        this.outbox = [(native.encode(hello),)]

    def disconnect(self, now: float, stream: int = 0) -> None:
        """The connection is gone."""
        # The link may only be slow, with a frame in transit: allow the next connection more time.
        if self.silent(now, stream):
            self._silence_s *= 2
        self._streams[stream].end()
        self._forget_said()

    def receive(self, parts: Sequence[Part], now: float, stream: int = 0) -> list[ReceiverEvent]:
        """Take one message.

        Raises ProtocolError when this connection must end, to be followed by another. Any other error, and
        VersionError, ends the session: PeerError when the producer refuses this receiver or describes a scan that it
        cannot take, ConfigError when the scan's rows cannot be shared as requested.
        """
        this = self._streams[stream]
        try:
            message = native.decode(parts)
            following = RECEIVER_TURNS[ReceiverState.OVER if self._over else this.state].get(trigger(message))
            if following is None:
                raise ProtocolError(f"received {type(message).__name__} out of turn, in {this.state.name.lower()}")
            this.state = following
            if not isinstance(message, Bye):  # an end that only says Bye is not there
                self._gap_s = now - this.last_sign_at
                this.heard_at = self._heard_at = now
            return self._take(this, message, parts, now)
        except ProtocolError as error:
            return self._broken(this, error)
        except MinistreamError as error:
            self._depart(Reason.UNABLE, str(error))
            self._over = True
            raise

    def outgoing(self, now: float, stream: int = 0) -> list[tuple[Part, ...]]:
        """Everything to be sent now over this connection, in order."""
        this = self._streams[stream]
        out, this.outbox = this.outbox, []
        if this.state in _OPEN and not self._over:
            if stream == self.speaker:
                out += [(native.encode(message),) for message in self._due()]
            if not out and now - this.sent_at >= self._patience.heartbeat_s:
                out.append((native.encode(Heartbeat()),))
        if out:
            this.sent_at = now
        return out

    def silent(self, now: float, stream: int = 0) -> bool:
        """Whether this connection counts as lost because nothing arrives over it."""
        return now - self._streams[stream].last_sign_at > self._silence_s

    def departed(self, stream: int = 0) -> bool:
        """Whether this end has said Bye on this connection, before the stream's end."""
        return self._streams[stream].departed

    def check(self, now: float) -> list[ReceiverEvent]:
        """Check the timeouts. Raises PeerLostError when the producer never connected."""
        if self._farewell is not None:
            return self._part()
        if self._ended or self.state is ReceiverState.OVER:
            return []
        if self.info is None:
            if now - self._heard_at > self._patience.first_contact_s:
                self._over = True
                raise PeerLostError(f"timed out after {self._patience.first_contact_s:g} s waiting for the producer")
            return []
        if now - self._heard_at > self._patience.outage_s:
            return self._lose(f"no contact with the producer for {self._patience.outage_s:g} s")
        if not self._starved and not self._stall_told and now - self._frame_due_since > self._patience.stall_s:
            self._stall_told = True
            return [Stalled(now - self._frame_due_since)]
        return []

    def wait_s(self, now: float, stream: int = 0) -> float:
        """Seconds until `outgoing`, `silent` or `check` must be called again, if nothing happens before."""
        patience, this = self._patience, self._streams[stream]
        due = [now + patience.heartbeat_s]
        if not self._ended:
            due = [self._heard_at + (patience.outage_s if self.info else patience.first_contact_s)]
        if not this.is_apart:
            due.append(this.last_sign_at + self._silence_s)
        if this.state in _OPEN:
            due.append(this.sent_at + patience.heartbeat_s)
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
        return self._ended and self.intake.consumed == self.intake.totals.next_seq

    # the protocol

    @property
    def _limit(self) -> int:
        return self.intake.consumed + self._window

    @property
    def _starved(self) -> bool:
        """Whether this end's credit is what holds frames back."""
        return self.intake.totals.next_seq >= self._limit

    @property
    def _lost(self) -> tuple[int, ...]:
        """Of each stream, how many connections have ended; empty where there is one stream."""
        return tuple(stream.lost for stream in self._streams) if len(self._streams) > 1 else ()

    def _forget_said(self) -> None:
        """A connection was lost or made: what was said may not have been heard."""
        self._granted = None
        self._confirmed = False
        self.intake.ask()

    def _due(self) -> list[Message]:
        """What has not been reported to the producer yet."""
        intake = self.intake
        due: list[Message] = [Again(seq=seq) for seq in sorted(intake.unasked)]
        intake.unasked.clear()
        acked = intake.saved if self._saves and not self._concluded else intake.consumed
        grant = Grant(acked=acked, consumed=intake.consumed, limit=self._limit, refused=intake.refused, lost=self._lost)
        arrived = tuple(stream.arrived for stream in self._streams) if len(self._streams) > 1 else ()
        if grant != self._granted or sum(arrived) - self._told > self._window // _SHARE:
            self._granted, self._told = grant, sum(arrived)
            due.append(replace(grant, arrived=arrived))
        if self.state is ReceiverState.ENDED and self.exhausted and self._concluded and not self._confirmed:
            self._confirmed = True
            due += [message for message in (self._outcome, Bye(reason=Reason.DONE)) if message is not None]
        return due

    def _take(self, this: ReceiverStream, message: Message, parts: Sequence[Part], now: float) -> list[ReceiverEvent]:
        match message:
            case ScanInfo():
                return self._learn(this, message, now)
            case FrameHeader() | Omission():
                return self._frame(this, message, parts, now)
            case End(totals=totals):
                self._final = totals
                self._forget_said()
                return self._finish()
            case Heartbeat(totals=totals):
                self._announced = totals or self._announced
            case Bye(reason=Reason.DONE):
                self._over = True
            case Bye(totals=totals):
                self._announced = totals or self._announced
                self._farewell = message
                if message.reason is Reason.LEFT:
                    this.end()
                return self._part()
        return []

    def _learn(self, this: ReceiverStream, info: ScanInfo, now: float) -> list[ReceiverEvent]:
        if info.first != this.resume:
            raise ProtocolError(f"expected the producer to resume at frame {this.resume}, not {info.first}")
        if self.info is not None:
            if replace(info, first=self.info.first) != self.info:
                return self._lose(f"the producer has changed its description of scan {self.info.scan_id!r}")
            return []
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
        return []

    def _frame(
        self, this: ReceiverStream, entry: FrameHeader | Omission, parts: Sequence[Part], now: float
    ) -> list[ReceiverEvent]:
        assert self.info is not None
        this.arrived += 1
        known = self.intake.repeated, self.intake.asked_again
        if self._final is not None and entry.seq >= self._final.next_seq:
            raise ProtocolError(f"received frame {entry.seq} after the end of the scan at {self._final.next_seq}")
        events = self.intake.take(entry, parts[-1], self.info, self._limit)
        if (self.intake.repeated, self.intake.asked_again) == known:
            self._progress(now)
        return events + self._finish()

    def _progress(self, now: float) -> None:
        self._fruitless = 0
        self._silence_s = max(self._patience.silence_s, _MARGIN * self._gap_s)
        self._frame_due_since = now
        self._stall_told = False

    def _finish(self) -> list[ReceiverEvent]:
        """The end, once every frame is here."""
        if self._final is None or self._ended or not self.intake.ends_with(self._final):
            return []
        self._ended = True
        return [Ended(self._final)]

    def _part(self) -> list[ReceiverEvent]:
        """The producer has said Bye. If it leaves, frames may still be in transit over the other connections."""
        assert self._farewell is not None
        reason, text = self._farewell.reason, self._farewell.text
        if reason is Reason.LEFT and self._missing and not all(stream.is_apart for stream in self._streams):
            return []
        self._farewell = None
        if reason in _PASSING:
            raise ProtocolError(f"the producer ended the connection: {text}")
        self._over = True
        if self._ended:
            return []
        told = f"the producer aborted: {text}" if reason is Reason.LEFT else f"the producer rejected this end: {text}"
        if self.info is not None:
            return self._lose(told)
        raise _REFUSALS.get(reason, PeerError)(told)

    @property
    def _missing(self) -> bool:
        """Whether less is here than the producer is known to have submitted."""
        return self._announced is None or self.intake.totals.next_seq < self._announced.next_seq

    def _broken(self, this: ReceiverStream, error: ProtocolError) -> list[ReceiverEvent]:
        """This connection ends with `error`; so does the session where a new connection would not help."""
        if this.state is not ReceiverState.OVER:  # else the producer has said Bye
            this.depart(Reason.PROTOCOL, str(error))
            self._fruitless += 1
        this.end()
        if self._fruitless < _FRUITLESS and not isinstance(error, VersionError):
            raise error
        if self.info is not None:
            return [] if self._ended else self._lose(str(error))
        self._over = True
        raise error if isinstance(error, VersionError) else PeerError(str(error))

    def _lose(self, text: str) -> list[ReceiverEvent]:
        self._over = True
        return [Lost(text, self._announced)]

    def _depart(self, reason: Reason, text: str) -> None:
        for stream in self._streams:
            stream.depart(reason, text)
