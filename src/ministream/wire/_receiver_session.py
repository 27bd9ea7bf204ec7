"""The receiver's session of the native wire, without a socket; its driver is `transport._native.frame_receiver`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from ministream.errors import ConfigError, FrameError, MinistreamError, PeerError, PeerLostError, ProtocolError
from ministream.wire import frames, native
from ministream.wire._events import (
    Arrived,
    Ended,
    Lost,
    Patience,
    ReceiverEvent,
    Refused,
    Stalled,
    frames_within,
)
from ministream.wire._states import RECEIVER_TURNS, ReceiverState, trigger
from ministream.wire.native import (
    Bye,
    End,
    FrameHeader,
    Grant,
    Heartbeat,
    Hello,
    Message,
    Part,
    Reason,
    ScanInfo,
    Share,
)

# A frame that took so long to come may be followed by one that takes longer.
_MARGIN = 3
_OPEN = (ReceiverState.CALIBRATION, ReceiverState.DATA, ReceiverState.ENDED)
_REFUSALS: dict[Reason, type[MinistreamError]] = {
    Reason.LEFT: PeerLostError,
    Reason.PROTOCOL: ProtocolError,
    Reason.SHARE: ConfigError,
}


class ReceiverSession:
    """Takes one scan from one producer, over as many connections as it takes.

    `now` is a monotonic time in seconds. `credit_bytes` bounds the pixels that are in flight, waiting, or not yet
    acknowledged, but two frames are always allowed. `scan` is the id of the scan wanted, empty for any; `share`
    says which of its rows.
    """

    def __init__(
        self,
        *,
        patience: Patience,
        now: float,
        credit_bytes: int,
        max_frame_bytes: int,
        scan: str = "",
        share: Share | None = None,
    ) -> None:
        self.state = ReceiverState.APART
        self.info: ScanInfo | None = None
        self.totals = native.Totals()
        self.acked = 0
        self.refused = 0
        self.departed = False  # this end has said Bye before the stream's end
        self._patience = patience
        self._credit_bytes = credit_bytes
        self._max_frame_bytes = max_frame_bytes
        self._wanted = scan
        self._share = share or Share()
        self._name = secrets.token_hex(16)
        self._window = 0
        self._refused_seqs: set[int] = set()
        self._ended = False
        self._granted: Grant | None = None
        self._confirmed = False
        self._outbox: list[tuple[Part, ...]] = []
        self._heard_at = now
        self._dialled_at = now
        self._sent_at = now
        self._frame_due_since = now
        self._stall_told = False
        self._gap_s = 0.0
        self._silence_s = patience.silence_s

    # what the application does

    def ack(self, seq: int, now: float) -> None:
        """Every frame up to and including `seq` has been consumed."""
        if seq >= self.totals.frames:
            raise ValueError(f"frame {seq} acknowledged, {self.totals.frames} have arrived")
        if self._starved:
            self._frame_due_since = now
        self._advance(seq + 1)

    def leave(self, text: str) -> None:
        """Give up before the end; the producer is told why."""
        self._depart(Reason.LEFT, text)

    # what the transport does

    def connect(self, now: float) -> None:
        """A new connection is being made: greet on it, and resume where the last one broke."""
        self.state = ReceiverState.GREETING
        self._dialled_at = now
        self._granted = None
        self._confirmed = False
        scan = self.info.scan_id if self.info else self._wanted
        hello = Hello(
            receiver=self._name,
            scan=scan,
            resume=self.totals.frames,
            limit=max(self._limit, self.totals.frames),
            codecs=tuple(frames.CODECS),
            share=self._share,
        )
        self._outbox = [(native.encode(hello),)]

    def disconnect(self, now: float) -> None:
        """The connection is gone."""
        # Perhaps it was alive, and a frame was crossing a slow link: the next one is given longer.
        if self.silent(now):
            self._silence_s *= 2
        if self.state is not ReceiverState.OVER:
            self.state = ReceiverState.APART

    def receive(self, parts: Sequence[Part], now: float) -> list[ReceiverEvent]:
        """Take one message.

        Raises ProtocolError, PeerError when the producer refuses this receiver, ConfigError when the scan's rows
        cannot be shared as asked for.
        """
        try:
            message = native.decode(parts)
            following = RECEIVER_TURNS[self.state].get(trigger(message))
            if following is None:
                raise ProtocolError(f"{type(message).__name__} out of turn, in {self.state.name.lower()}")
            self.state = following
            self._gap_s, self._heard_at = now - self._last_sign_at, now
            return self._take(message, parts, now)
        except ProtocolError as error:
            self._depart(Reason.PROTOCOL, str(error))
            raise

    def outgoing(self, now: float) -> list[tuple[Part, ...]]:
        """Everything to be sent now, in order."""
        out, self._outbox = self._outbox, []
        if self.state in _OPEN:
            grant = Grant(acked=self.acked, limit=self._limit, refused=self.refused)
            if grant != self._granted:
                self._granted = grant
                out.append((native.encode(grant),))
            if self.state is ReceiverState.ENDED and self.consumed and not self._confirmed:
                self._confirmed = True
                out.append((native.encode(Bye(reason=Reason.DONE)),))
            if not out and now - self._sent_at >= self._patience.heartbeat_s:
                out.append((native.encode(Heartbeat()),))
        if out:
            self._sent_at = now
        return out

    def silent(self, now: float) -> bool:
        """Whether this connection must be given up, because nothing comes over it."""
        return now - self._last_sign_at > self._silence_s

    def check(self, now: float) -> list[ReceiverEvent]:
        """Notice what has not happened. Raises PeerLostError when the producer never came."""
        if self._ended or self.state is ReceiverState.OVER:
            return []
        if self.info is None:
            if now - self._heard_at > self._patience.first_contact_s:
                self.state = ReceiverState.OVER
                raise PeerLostError(f"no producer answered within {self._patience.first_contact_s:g} s")
            return []
        if now - self._heard_at > self._patience.stall_s:
            self.state = ReceiverState.OVER
            return [Lost(f"the producer has been silent for more than {self._patience.stall_s:g} s")]
        if not self._starved and not self._stall_told and now - self._frame_due_since > self._patience.stall_s:
            self._stall_told = True
            return [Stalled(now - self._frame_due_since)]
        return []

    def wait_s(self, now: float) -> float:
        """Seconds until `outgoing`, `silent` or `check` must be asked again, if nothing happens before."""
        patience = self._patience
        due = [self._heard_at + (patience.stall_s if self.info else patience.first_contact_s)]
        if self.state is not ReceiverState.APART:
            due.append(self._last_sign_at + self._silence_s)
        if self.state in _OPEN:
            due.append(self._sent_at + patience.heartbeat_s)
        return max(0.0, min(due) - now)

    # the protocol

    @property
    def consumed(self) -> bool:
        """Whether everything that the producer sent is here and acknowledged."""
        return self._ended and self.acked == self.totals.frames

    @property
    def _last_sign_at(self) -> float:
        """When this connection last gave reason to believe in it."""
        return max(self._dialled_at, self._heard_at)

    @property
    def _limit(self) -> int:
        return self.acked + self._window

    @property
    def _starved(self) -> bool:
        """Whether it is this end that keeps frames from coming."""
        return self.totals.frames >= self._limit

    def _take(self, message: Message, parts: Sequence[Part], now: float) -> list[ReceiverEvent]:
        match message:
            case ScanInfo():
                return self._learn(message, now)
            case FrameHeader():
                return [self._accept(message, parts, now)]
            case End(totals=totals):
                return self._finish(totals)
            case Bye(reason=reason, text=text) if reason is not Reason.DONE:
                return self._dismissed(reason, text)
            case _:
                return []

    def _learn(self, info: ScanInfo, now: float) -> list[ReceiverEvent]:
        if info.frame_bytes > self._max_frame_bytes:
            raise ProtocolError(
                f"frames of {info.band[1]} × {info.cols} {info.dtype} take {info.frame_bytes} bytes each, "
                f"{self._max_frame_bytes} are allowed"
            )
        if info.codec not in frames.CODECS:
            raise ProtocolError(f"the producer packs frames with the unknown codec {info.codec!r}")
        if info.first != self.totals.frames:
            raise ProtocolError(f"the producer goes on at frame {info.first}, {self.totals.frames} is due")
        if self.info is not None and replace(info, first=self.info.first) != self.info:
            raise ProtocolError(f"the producer has changed its description of scan {self.info.scan_id!r}")
        band = self._share.band(info.rows)
        if info.band != (band.first, band.rows):
            asked = f"{band.rows} rows from {band.first} on were asked for"
            raise ProtocolError(f"the producer sends {info.band[1]} rows from {info.band[0]} on, {asked}")
        self.info = info
        self._window = frames_within(self._credit_bytes, info.frame_bytes)
        self._frame_due_since = now
        if self.totals.projections:
            self.state = ReceiverState.DATA
        return []

    def _accept(self, header: FrameHeader, parts: Sequence[Part], now: float) -> ReceiverEvent:
        assert self.info is not None
        seq = self.totals.frames
        if header.seq != seq:
            raise ProtocolError(f"frame {header.seq} came where {seq} is due")
        if self._starved:
            raise ProtocolError(f"frame {seq} came, the credit ends below {self._limit}")
        self.totals = self.totals.after(header.kind, parts[0])
        self._silence_s = max(self._patience.silence_s, _MARGIN * self._gap_s)
        self._frame_due_since = now
        self._stall_told = False
        try:
            return Arrived(seq, frames.unpack(header, parts[1], self.info))
        except FrameError as error:
            self.refused += 1
            self._refused_seqs.add(seq)
            self._advance(self.acked)
            return Refused(seq, error.reason, str(error))

    def _advance(self, acked: int) -> None:
        self.acked = max(self.acked, acked)
        while self.acked in self._refused_seqs:  # nobody else will acknowledge those
            self._refused_seqs.discard(self.acked)
            self.acked += 1

    def _finish(self, totals: native.Totals) -> list[ReceiverEvent]:
        if replace(totals, dropped=0) != self.totals:
            raise ProtocolError(
                f"the producer counts {totals.frames} frames (digest {totals.digest.hex()}), "
                f"{self.totals.frames} arrived (digest {self.totals.digest.hex()})"
            )
        if self._ended:
            return []
        self._ended = True
        return [Ended(totals)]

    def _dismissed(self, reason: Reason, text: str) -> list[ReceiverEvent]:
        told = f"the producer gave up: {text}" if reason is Reason.LEFT else f"the producer refuses to serve: {text}"
        if self._ended:
            return []
        if self.info is not None:
            return [Lost(told)]
        raise _REFUSALS.get(reason, PeerError)(told)

    def _depart(self, reason: Reason, text: str) -> None:
        if self.state not in (ReceiverState.APART, ReceiverState.OVER):
            self._outbox.append((native.encode(Bye(reason=reason, text=native.line(text))),))
            self.departed = True
        self.state = ReceiverState.OVER
