"""The producer's session of the native wire, without a socket; its driver is `transport._native.frame_sender`."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ministream.errors import ConfigError, InputError, PeerError, PeerLostError, ProtocolError, VersionError
from ministream.model import FrameKind, Scan, Slab
from ministream.wire import native
from ministream.wire._events import Interrupted, Joined, Patience, SenderEvent, TurnedAway, frames_within
from ministream.wire._states import SENDER_TURNS, SenderState, trigger
from ministream.wire._store import FrameStore, Parts, Reload
from ministream.wire._striping import Striping
from ministream.wire.frames import CODECS
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
    Totals,
    Written,
)


def info_of(scan: Scan, codec: str, band: Slab | None = None) -> ScanInfo:
    """The description of the scan that receivers get.

    Raises ConfigError for an unknown codec, InputError for a scan that no receiver would accept.
    """
    if codec not in CODECS:
        raise ConfigError(f"unknown codec {codec!r}: choose one of {', '.join(CODECS)}")
    info = ScanInfo.of(scan, codec=codec, band=band)
    try:
        native.decode([native.encode(info)])
    except ProtocolError as error:
        raise InputError(f"scan {scan.scan_id!r} cannot be streamed: {error}") from None
    return info


class SenderSession:
    """Serves `band` of one scan's rows (None: all) to one receiver at a time, over as many connections as it makes.

    A `peer` is the transport's name of one connection. `now` is a monotonic time in seconds. Frames are kept until
    they are acknowledged; a reconnecting receiver gets them again as requested. A producer that was started
    again, with a receiver that holds the first N frames already, takes these N without sending them, and keeps those
    of them that the receiver has not saved.
    """

    def __init__(
        self,
        scan: Scan,
        *,
        patience: Patience,
        now: float,
        codec: str = "none",
        hold_bytes: int = 2**30,
        band: Slab | None = None,
    ) -> None:
        self.info = info_of(scan, codec, band)
        self.state = SenderState.WAITING
        self.totals = Totals()
        self.acked = 0
        self.consumed = 0
        self.refused = 0
        self.asked_again = 0
        self.written: Written | None = None
        self._patience = patience
        self.max_held = frames_within(hold_bytes, self.info.frame_bytes)
        self._store = FrameStore()
        self._limit = 0
        self._had = 0  # frames below it arrived from an earlier run of this producer
        self._end: bytes | None = None
        self._striping = Striping()
        self._receiver = ""
        self._outbox: list[tuple[bytes, Parts]] = []
        self._heard_at = now
        self._last_refusal = ""
        self._farewell: PeerError | None = None

    # what the producer does

    @property
    def room(self) -> bool:
        """Whether the credit allows one more frame."""
        return self._end is None and self.totals.next_seq < min(self._limit, self.consumed + self.max_held)

    @property
    def forgets(self) -> bool:
        """Whether frames that the receiver has not saved are not held any more: its job cannot be started again."""
        return self._store.first > self.acked

    def submit(self, header: FrameHeader, payload: Part, reload: Reload | None = None) -> None:
        """Take a packed frame, if there is `room`; its `seq` is set here. Raises ProtocolError if out of turn.

        Once `hold_bytes` are in memory, the payload may be read again with `reload` instead.
        """
        if self._end is not None:
            raise ProtocolError(f"{header.kind.name.lower()} {header.index} after the end of the scan")
        if header.kind is not FrameKind.PROJECTION and self.totals.projections:
            raise ProtocolError(f"{header.kind.name.lower()} {header.index} after the first projection")
        self._keep(replace(header, seq=self.totals.next_seq), payload, reload=reload)

    def omit(self, omission: Omission) -> None:
        """Take the place of projections that were left out, if there is `room`; `seq` is set here.

        Raises ProtocolError after the end.
        """
        if self._end is not None:
            raise ProtocolError(f"{len(omission.indices)} projections left out after the end of the scan")
        self._keep(replace(omission, seq=self.totals.next_seq))

    def end(self, dropped: int = 0) -> None:
        """No more frames; `dropped` projections never left the source."""
        self.totals = self.totals.without(dropped)
        self._end = native.encode(End(totals=self.totals))

    def abort(self, text: str) -> None:
        """Abort; the receiver still gets the submitted frames, and the reason."""
        self._outbox += self._stream(self._heard_at)
        farewell = native.encode(Bye(reason=Reason.LEFT, text=native.line(text), totals=self.totals))
        self._outbox += [(peer, (farewell,)) for peer in self._striping.peers]
        self.state = SenderState.OVER
        self._farewell = PeerLostError(f"the stream was aborted: {text}")

    # what the transport does

    @property
    def peers(self) -> tuple[bytes, ...]:
        """The connections over which a receiver is served."""
        return self._striping.peers

    @property
    def retransmitted(self) -> int:
        """Frames that were sent once more."""
        return self._striping.retransmitted

    def heeds(self, peer: bytes) -> bool:
        """Whether `peer` is one of the receiver's newest connections; what it sent before it was lost still counts."""
        return self._striping.heeds(peer)

    def serves(self, now: float) -> bool:
        """Whether a receiver is connected, as far as is known."""
        return bool(self._striping.peers) and now - self._heard_at <= self._patience.silence_s

    def receive(self, peer: bytes, parts: Sequence[Part], now: float) -> list[SenderEvent]:
        """Take one message. A bad one costs its sender the connection, never the producer the scan."""
        try:
            message = native.decode(parts)
            if isinstance(message, Hello):
                return self._welcome(peer, message, now)
            # messages of a superseded connection are ignored
            return self._take(message, peer, now) if self.heeds(peer) else []
        except ProtocolError as error:
            self._drop(peer)
            reason = Reason.UNABLE if isinstance(error, VersionError) else Reason.PROTOCOL
            return self._turn_away(peer, reason, str(error))

    def lost(self, peer: bytes) -> None:
        """The transport no longer reaches `peer`."""
        self._striping.close(peer)
        self._await_if_alone()

    def outgoing(self, now: float) -> list[tuple[bytes, Parts]]:
        """Everything that can be sent now, in order: (peer, message)."""
        out, self._outbox = self._outbox, []
        for peer in {peer for peer, _ in out}:
            self._striping.sent(peer, now)
        if self.state in (SenderState.STREAMING, SenderState.DONE):
            out += self._stream(now)
            for peer in self._striping.idle(now - self._patience.heartbeat_s):
                out.append((peer, (native.encode(Heartbeat(totals=self.totals)),)))
                self._striping.sent(peer, now)
        return out

    def check(self, now: float) -> None:
        """Raises PeerLostError when the receiver stays away, or PeerError when it has left."""
        if self._farewell is not None:
            raise self._farewell
        if self.state is SenderState.DONE or now - self._heard_at <= self._lost_after_s:
            return
        refusal = f"; the last peer was rejected: {self._last_refusal}" if self._last_refusal else ""
        if not self._receiver:
            raise PeerLostError(f"timed out after {self._lost_after_s:g} s waiting for a receiver{refusal}")
        used = f"{self.consumed} of {self.totals.next_seq} frames were used"
        raise PeerLostError(f"no contact with the receiver for {self._lost_after_s:g} s, {used}{refusal}")

    def wait_s(self, now: float) -> float:
        """Seconds until `outgoing` or `check` must be called again, if nothing happens before."""
        due = self._heard_at + self._lost_after_s
        due = min(due, self._striping.idle_since() + self._patience.heartbeat_s)
        return max(0.0, due - now)

    # the protocol

    @property
    def _lost_after_s(self) -> float:
        return self._patience.outage_s if self._receiver else self._patience.first_contact_s

    def _keep(self, entry: FrameHeader | Omission, *payload: Part, reload: Reload | None = None) -> None:
        self.totals = self.totals.after(entry)
        if entry.seq < self._store.first:
            return  # the receiver has saved it, from an earlier run of this producer
        self._store.append((native.encode(entry), *payload), reload)
        # Frames used but not yet acknowledged serve a restarted receiver: kept while memory allows, or an archive.
        self._store.unload(self.totals.next_seq - self.max_held)

    def _welcome(self, peer: bytes, hello: Hello, now: float) -> list[SenderEvent]:
        if hello.stream >= hello.streams:
            raise ProtocolError(f"received Hello for stream {hello.stream} of {hello.streams}")
        refusal = self._refusal(hello, now)
        if refusal is not None:
            return self._turn_away(peer, *refusal)
        self.state = self._following(hello)
        self._striping.forget(hello.lost)
        if hello.streams == 1 or hello.receiver != self._receiver or not self._striping.others(hello.stream):
            self._begin(hello)
        self._receiver, self._heard_at = hello.receiver, now
        self._limit = max(self._limit, hello.limit)
        self._striping.open(hello.stream, peer, hello.lost, now)
        self._outbox.append((peer, (native.encode(replace(self.info, first=hello.resume)),)))
        return [Joined(hello.resume, hello.stream)]

    def _begin(self, hello: Hello) -> None:
        """The receiver's first connection, or the only one that is left: it gets the frames from `resume` on."""
        resume = self._resume(hello)
        if resume > self.totals.next_seq:  # this producer was started again, the receiver was not
            self.acked = resume if hello.saved is None else min(hello.saved, resume)
            self._store.release(self.acked)
            self._had = resume
        self.consumed = resume
        self._limit = 0
        self._striping.restart(resume)

    def _resume(self, hello: Hello) -> int:
        """The first frame wanted. Frames may have been used, over other streams, since a stream's Hello was written."""
        striped = hello.streams > 1 and hello.receiver == self._receiver
        return max(hello.resume, self.consumed) if striped else hello.resume

    def _refusal(self, hello: Hello, now: float) -> tuple[Reason, str] | None:
        if self.serves(now) and hello.receiver != self._receiver:
            return Reason.BUSY, "another receiver is connected"
        if hello.scan not in ("", self.info.scan_id):
            return Reason.OTHER_SCAN, f"scan {hello.scan!r} was requested, this is scan {self.info.scan_id!r}"
        band = hello.share.band(self.info.rows)
        if (band.first, band.rows) != self.info.band:
            return Reason.UNABLE, f"{band.rows} rows from {band.first} on were requested, others are sent here"
        if self.info.codec not in hello.codecs:
            wanted = " or ".join(hello.codecs)
            return Reason.UNABLE, f"codec {wanted} requested, these frames are packed with codec {self.info.codec}"
        first, stop, resume = self._store.first, self.totals.next_seq, self._resume(hello)
        # A restarted producer learns from its receiver where to continue, and skips what comes before.
        started_again = not stop and self._end is None and bool(hello.scan)
        if resume < first or (resume > max(first, stop, self._had) and not started_again):
            held = f"frames {first} to {stop - 1} are held" if stop > first else f"frame {first} comes next"
            return Reason.NOT_HELD, f"frame {resume} was requested, {held}: start the scan again"
        return None

    def _turn_away(self, peer: bytes, reason: Reason, text: str) -> list[SenderEvent]:
        self._outbox.append((peer, (native.encode(Bye(reason=reason, text=native.line(text))),)))
        self._last_refusal = text
        return [TurnedAway(text)]

    def _take(self, message: Message, peer: bytes, now: float) -> list[SenderEvent]:
        following = self._following(message)
        events: list[SenderEvent] = []
        match message:
            case Grant():
                self._credit(message)
            case Again(seq=seq):
                self._ask(seq)
            case Written():
                self.written = message
            case Bye(reason=Reason.DONE):
                self._confirmed(peer)
            case Bye(reason=Reason.PROTOCOL | Reason.AWAY, text=text):
                self._drop(peer)
                events, following = [Interrupted(text)], self.state
            case Bye(text=text):
                left = f"the receiver left with {self.consumed} of {self.totals.next_seq} frames used"
                self._farewell = PeerLostError(f"{left}: {text}" if text else left)
        self.state = following
        self._heard_at = now
        self._await_if_alone()
        return events

    def _drop(self, peer: bytes) -> None:
        """This connection ends; the receiver may make another."""
        self._striping.close(peer, heed=False)
        self._await_if_alone()

    def _await_if_alone(self) -> None:
        if self.state is SenderState.STREAMING and not self._striping.peers:
            self.state = SenderState.WAITING

    def _following(self, message: Message) -> SenderState:
        following = SENDER_TURNS[self.state].get(trigger(message))
        if following is None:
            raise ProtocolError(f"received {type(message).__name__} out of turn, while {self.state.name.lower()}")
        return following

    def _credit(self, grant: Grant) -> None:
        if not grant.acked <= grant.consumed <= self._striping.cursor:
            sent = self._striping.cursor
            raise ProtocolError(f"{grant.acked} frames acknowledged and {grant.consumed} used, {sent} sent")
        self._striping.confirm(grant.arrived, grant.lost)
        self._striping.forget(grant.lost)
        self.acked = max(self.acked, grant.acked)
        self.consumed = max(self.consumed, grant.consumed)
        self.refused = max(self.refused, grant.refused)
        self._limit = max(self._limit, grant.limit)
        self._store.release(self.acked)

    def _ask(self, seq: int) -> None:
        if not max(self.consumed, self._store.first) <= seq < self.totals.next_seq:
            raise ProtocolError(f"frame {seq} requested again, {self.consumed} used and {self.totals.next_seq} held")
        self.asked_again += 1
        self._striping.ask(seq)

    def _confirmed(self, peer: bytes) -> None:
        if not self._striping.ended or self.consumed < self.totals.next_seq:
            raise ProtocolError(f"the end was confirmed with {self.consumed} of {self.totals.next_seq} frames used")
        self._outbox.append((peer, (native.encode(Bye(reason=Reason.DONE)),)))

    def _stream(self, now: float) -> list[tuple[bytes, Parts]]:
        stop = min(self.totals.next_seq, self._limit)
        first = max(self.consumed, self._store.first)
        out = [(peer, self._store.get(seq)) for peer, seq in self._striping.due(first, stop, now)]
        if self._end is not None and (last := self._striping.end(self.totals.next_seq, now)) is not None:
            out.append((last, (self._end,)))
        return out
