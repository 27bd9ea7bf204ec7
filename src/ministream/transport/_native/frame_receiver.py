"""The receiver's driver of the native wire: gives `wire.session.ReceiverSession` a socket, a thread and a clock."""

from __future__ import annotations

import queue
import time
from types import TracebackType
from typing import Self

from ministream import log
from ministream.errors import MinistreamError, PeerLostError
from ministream.model import CurveKeys, Scan
from ministream.transport._channels import Channel, channels_of, dial
from ministream.transport._native.driver import Driver
from ministream.transport._wire import Event, ReceiverReport
from ministream.wire.native import MAX_HEADER_BYTES, Share
from ministream.wire.session import (
    Lost,
    Patience,
    ReceiverSession,
    ReceiverState,
    Stalled,
)

_LOG = log.get(__name__)

# How long a last word may take to go out, and its confirmation to come, when the stream is closed.
_LINGER_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class FrameReceiver(Driver):
    """Dials the producer at `url` and takes one scan, over as many connections as it takes.

    A thread owns the socket: it keeps the connection alive, and makes a new one, also while the caller computes.
    `credit_bytes` bounds the pixels that are on the way, waiting in `next`, or not yet acknowledged (at least two
    frames). One thread at a time may call the methods.

    * The producer has not answered within `connect_timeout_s`: every call raises PeerLostError.
    * Nothing has come over a connection for `silence_s` (a producer with nothing to send sends heartbeats): the
      connection is given up for another, with pauses that grow. Where frames take long to cross a slow link, the
      time is doubled until one has come, and follows what that one took.
    * Nothing has come for `stall_timeout_s`, over however many connections: `Lost`.
    * The producer is there and has credit, but for `stall_timeout_s` no frame has come: a warning in the log. Its
      source is slow or hangs, which from here is the same.

    With `share` its frames hold those rows of the scan alone; receivers that share a scan get it together.
    With `keys` the stream is encrypted, and comes from the producer whose key they hold or not at all.

    Raises ConfigError for an address that is not understood.
    """

    def __init__(
        self,
        url: str,
        *,
        credit_bytes: int = 256 * 2**20,
        connect_timeout_s: float = 120.0,
        stall_timeout_s: float = 30.0,
        max_frame_bytes: int = 2 * 2**30,
        scan_id: str = "",
        silence_s: float = 5.0,
        heartbeat_s: float = 1.0,
        keys: CurveKeys | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__("frame receiver", url)
        channels_of(url)
        self._keys = keys
        self._max_frame_bytes = max_frame_bytes
        self._session = ReceiverSession(
            patience=Patience(
                first_contact_s=connect_timeout_s,
                stall_s=stall_timeout_s,
                silence_s=silence_s,
                heartbeat_s=heartbeat_s,
            ),
            now=time.monotonic(),
            credit_bytes=credit_bytes,
            max_frame_bytes=max_frame_bytes,
            scan=scan_id,
            share=share,
        )
        self._channel: Channel | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._bytes = 0
        self._dialled = 0
        self._trouble = ""
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close("" if error is None else f"the receiver failed: {str(error) or type(error).__name__}")

    def scan(self, timeout_s: float | None = None) -> Scan:
        """Wait until the producer has described the scan.

        Raises PeerLostError when it does not come, ProtocolError when it speaks another version, PeerError when
        it refuses.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._session.info or self._over, timeout_s)
            if self._session.info is None:
                self._raise_failure()
                raise PeerLostError(f"{self._url}: no scan was announced{self._because}")
            return self._session.info.scan

    def next(self, timeout_s: float | None = None) -> Event | None:
        """The next event; None when the time is up, and after the last one (`Ended` or `Lost`).

        Raises ProtocolError when the producer broke the protocol.
        """
        if self._over and self._events.empty():
            self._raise_failure()
            return None
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if event is None:
            self._thread.join()
            self._raise_failure()
        return event

    def ack(self, seq: int) -> None:
        """Every frame up to and including `seq` has been consumed; the producer may forget it and send more.

        Refused frames need no acknowledgement of their own.
        """
        with self._changed:
            if seq >= self._session.acked:
                self._session.ack(seq, time.monotonic())
                self._wake()

    @property
    def report(self) -> ReceiverReport:
        """Where the stream stands."""
        with self._changed:
            session = self._session
            return ReceiverReport(
                received=session.totals.frames - session.refused,
                refused=session.refused,
                acked=session.acked,
                bytes=self._bytes,
                dialled=self._dialled,
            )

    def close(self, text: str = "") -> None:
        """End the stream. After `Ended`, with everything acknowledged, see to it that the producer knows.

        Earlier, the producer is told that this receiver leaves, and why.
        """
        with self._changed:
            if self._session.consumed:
                self._changed.wait_for(lambda: self._over, _LINGER_S)
            elif not self._over:
                self._session.leave(text)
            self._stopping = True
        self._join()

    # the socket's thread

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._channel is not None:
            self._channel.wake()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while not self._finished():
                before = self._session.totals.frames
                self._connection()
                fruitful = self._session.totals.frames > before
                pause_s = _FIRST_PAUSE_S if fruitful else min(2 * pause_s, _LONGEST_PAUSE_S)
                with self._changed:
                    due_s = self._session.wait_s(time.monotonic())
                    self._changed.wait_for(self._finished, min(pause_s, due_s))
        except PeerLostError as error:
            raise PeerLostError(f"{error}{self._because}") from None
        finally:
            self._events.put(None)

    def _finished(self) -> bool:
        return self._stopping or self._session.state is ReceiverState.OVER

    def _connection(self) -> None:
        """Make one connection and use it as long as it lasts."""
        limit = max(self._max_frame_bytes, MAX_HEADER_BYTES)
        channel = dial(self._url, max_message_bytes=limit, keys=self._keys)
        with self._changed:
            self._session.connect(time.monotonic())
            self._channel = channel
            self._dialled += 1
        try:
            while self._exchange(channel):
                pass
        finally:
            with self._changed:
                self._channel = None
                self._session.disconnect(time.monotonic())
            channel.close(_LINGER_S if self._session.departed and not channel.broken else 0.0)

    def _exchange(self, channel: Channel) -> bool:
        """Send what is due, take one message. False when this connection has served."""
        with self._changed:
            finished = self._finished()
            now = time.monotonic()
            wait_s = self._session.wait_s(now)
            outgoing = self._session.outgoing(now)
        for parts in outgoing:
            channel.send(parts)
        if finished:
            return False
        received = channel.recv(wait_s)
        try:
            self._take(received)
        except MinistreamError:
            with self._changed:
                last_words = self._session.outgoing(now)
            for parts in last_words:
                channel.send(parts)
            raise
        return not self._given_up(channel, received is None)

    def _take(self, parts: list[memoryview] | None) -> None:
        with self._changed:
            now = time.monotonic()
            events = [] if parts is None else self._session.receive(parts, now)
            events += self._session.check(now)
            self._changed.notify_all()
        if parts is not None:
            self._trouble = ""
            self._bytes += sum(len(part) for part in parts[1:])
        for event in events:
            match event:
                case Stalled(seconds=seconds):
                    _LOG.warning("%s: the producer is there, but has sent no frame for %.0f s", self._url, seconds)
                case Lost(text=text):
                    self._events.put(Lost(f"{text}{self._because}"))
                case _:
                    self._events.put(event)

    def _given_up(self, channel: Channel, nothing_came: bool) -> bool:
        silent = self._session.silent(time.monotonic())
        if not silent and not (channel.broken and nothing_came):
            return False
        trouble = channel.broken or "nothing came over it"
        if not self._trouble:
            _LOG.warning("%s: connection given up: %s; dialling again", self._url, trouble)
        self._trouble = trouble
        return True

    @property
    def _because(self) -> str:
        return f" (last attempt: {self._trouble})" if self._trouble else ""
