"""The producer's session where several receivers share the rows of a scan: a `SenderSession` for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ministream.errors import PeerError, PeerLostError, ProtocolError
from ministream.model import Scan
from ministream.wire import native
from ministream.wire._events import Patience, SenderEvent, TurnedAway
from ministream.wire._sender_session import SenderSession, info_of
from ministream.wire._states import SenderState
from ministream.wire._store import Parts
from ministream.wire.native import Bye, FrameHeader, Hello, Omission, Part, Reason, ScanInfo, Share, Written


class SenderBands:
    """Serves one scan to one or more receivers that share its rows: a `SenderSession` for each band.

    Nothing is sent until every row is requested; the bands are then fixed. All of them advance
    together: a frame is taken when every receiver has credit for it, so the slowest sets the pace. The stream is done
    when it is done for all, and over as soon as it is over for one.

    Arguments and times are those of `SenderSession`; `hold_bytes` is for all bands together.
    """

    def __init__(
        self, scan: Scan, *, patience: Patience, now: float, codec: str = "none", hold_bytes: int = 2**30
    ) -> None:
        self.info = info_of(scan, codec)
        self._scan, self._patience, self._hold_bytes = scan, patience, hold_bytes
        self._contact_by = now + patience.first_contact_s
        self._bands: dict[Share, SenderSession] = {}
        self._dropped: int | None = None
        self._outbox: list[tuple[bytes, Parts]] = []
        self._last_refusal = ""

    @property
    def bands(self) -> tuple[SenderSession, ...]:
        """The current streams, topmost rows first."""
        return tuple(self._bands[share] for share in sorted(self._bands))

    @property
    def complete(self) -> bool:
        """Whether every row is requested."""
        return sum(band.info.band[1] for band in self._bands.values()) == self.info.rows

    # what the producer does

    @property
    def room(self) -> bool:
        """Whether the credit of every receiver allows one more frame."""
        return self.complete and all(band.room for band in self._bands.values())

    @property
    def written(self) -> Written | None:
        """What the receivers' job said about its volume; of several receivers at least one reports it."""
        return next((band.written for band in self.bands if band.written is not None), None)

    @property
    def done(self) -> bool:
        """Whether every receiver has confirmed the end."""
        return self.complete and all(band.state is SenderState.DONE for band in self._bands.values())

    @property
    def forgets(self) -> bool:
        """Whether frames that a receiver has not saved are not held any more: its job cannot be started again."""
        return any(band.forgets for band in self._bands.values())

    @property
    def max_held(self) -> int:
        """How many frames may be in memory."""
        return min((band.max_held for band in self._bands.values()), default=0)

    def submit(
        self, packed: Sequence[tuple[FrameHeader, Part]], reload: Callable[[ScanInfo], Part] | None = None
    ) -> None:
        """Take a frame, packed for each of the `bands`, if there is `room`. Raises ProtocolError if out of turn.

        `reload` reads and packs the frame again, for the band that it is given.
        """
        for band, (header, payload) in zip(self.bands, packed, strict=True):
            band.submit(header, payload, partial(reload, band.info) if reload is not None else None)

    def omit(self, omission: Omission) -> None:
        """Take the place of projections that were left out, if there is `room`."""
        for band in self._bands.values():
            band.omit(omission)

    def end(self, dropped: int = 0) -> None:
        """No more frames; `dropped` projections never left the source."""
        self._dropped = dropped
        for band in self._bands.values():
            band.end(dropped)

    def abort(self, text: str) -> None:
        """Abort; receivers that have not confirmed the end still get the submitted frames, and the reason."""
        for band in self._bands.values():
            if band.state not in (SenderState.DONE, SenderState.OVER):
                band.abort(text)

    # what the transport does

    def receive(self, peer: bytes, parts: Sequence[Part], now: float) -> list[SenderEvent]:
        """Take one message. A bad one costs its sender the connection, never the producer the scan."""
        band = next((band for band in self._bands.values() if band.heeds(peer)), None)
        if band is not None:
            return band.receive(peer, parts, now)
        try:
            message = native.decode(parts)
            return self._welcome(peer, message, parts, now) if isinstance(message, Hello) else []
        except ProtocolError as error:
            return self._turn_away(peer, Reason.PROTOCOL, str(error))

    def lost(self, peer: bytes) -> None:
        """The transport no longer reaches `peer`."""
        for band in self._bands.values():
            band.lost(peer)

    def outgoing(self, now: float) -> list[tuple[bytes, Parts]]:
        """Everything that can be sent now, in order for each peer: (peer, message)."""
        out, self._outbox = self._outbox, []
        for band in self._bands.values():
            out += band.outgoing(now)
        return out

    def check(self, now: float, trouble: str = "") -> None:
        """Raises PeerLostError when a receiver stays away, or PeerError when it has left; the others are notified.

        `trouble` is how the last connection without a handshake ended, for the message.
        """
        try:
            for band in self._bands.values():
                band.check(now)
            if not self.complete and now > self._contact_by:
                raise PeerLostError(self._absence(trouble))
        except PeerError as error:
            self.abort(str(error))
            raise

    def wait_s(self, now: float) -> float:
        """Seconds until `outgoing` or `check` must be called again, if nothing happens before."""
        waits = [band.wait_s(now) for band in self._bands.values()]
        return min(waits if self.complete else [*waits, max(0.0, self._contact_by - now)])

    # the protocol

    def _absence(self, trouble: str) -> str:
        waited = f"timed out after {self._patience.first_contact_s:g} s waiting for "
        if self._bands:
            asked = ", ".join(f"{first} to {first + rows - 1}" for first, rows in (b.info.band for b in self.bands))
            waited += f"the receivers of all {self.info.rows} rows: only rows {asked} were requested"
        else:
            waited += "a receiver"
        if self._last_refusal:
            return f"{waited}; the last peer was rejected: {self._last_refusal}"
        return f"{waited}; the last connection failed: {trouble}" if trouble else waited

    def _welcome(self, peer: bytes, hello: Hello, parts: Sequence[Part], now: float) -> list[SenderEvent]:
        band = self._bands.get(hello.share)
        if band is None:
            refusal = self._refusal(hello, now)
            if refusal is not None:
                return self._turn_away(peer, *refusal)
            band = self._new(hello.share, now)
        events = band.receive(peer, parts, now)
        if not band.peers:  # rejected
            self._outbox += band.outgoing(now)
            self._last_refusal = next((e.text for e in events if isinstance(e, TurnedAway)), self._last_refusal)
        else:
            self._admit(hello.share, band)
        return events

    def _refusal(self, hello: Hello, now: float) -> tuple[Reason, str] | None:
        """Why this receiver's band conflicts with the existing ones; empty if it does not."""
        try:
            hello.share.band(self.info.rows)
        except ProtocolError as error:
            return Reason.SHARE, str(error)
        others = [band for share, band in self._bands.items() if not share.meets(hello.share)]
        if any(band.serves(now) for band in others):
            return Reason.BUSY, "another receiver is connected"
        if others and self.complete:
            return (
                Reason.UNABLE,
                f"the scan is being sent to {len(self._bands)} receivers with another distribution of its rows",
            )
        return None

    def _new(self, share: Share, now: float) -> SenderSession:
        rows = share.band(self.info.rows)
        return SenderSession(
            self._scan,
            patience=self._patience,
            now=now,
            codec=self.info.codec,
            hold_bytes=self._hold_bytes * rows.rows // self.info.rows,
            band=rows,
        )

    def _admit(self, share: Share, band: SenderSession) -> None:
        if share in self._bands:
            return
        # Receivers of another distribution have disconnected, and nothing has been sent.
        self._bands = {other: kept for other, kept in self._bands.items() if other.meets(share)} | {share: band}
        if self._dropped is not None:
            band.end(self._dropped)

    def _turn_away(self, peer: bytes, reason: Reason, text: str) -> list[SenderEvent]:
        self._outbox.append((peer, (native.encode(Bye(reason=reason, text=native.line(text))),)))
        self._last_refusal = text
        return [TurnedAway(text)]
