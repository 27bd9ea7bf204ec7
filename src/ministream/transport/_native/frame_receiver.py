"""The receiver's driver of the native wire: gives `wire.session.ReceiverSession` a socket, a thread and a clock."""

from __future__ import annotations

import logging
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
from ministream.wire.native import MAX_HEADER_BYTES, Share, Totals, Written, line
from ministream.wire.session import (
    AskedAgain,
    Lost,
    Patience,
    ReceiverSession,
    ReceiverState,
    Stalled,
)

_LOG = log.get(__name__)

# How long the last messages may take to go out, and their confirmation to come, when the stream is closed; longer
# while the producer still waits for the outcome, perhaps over a new connection.
_LINGER_S = 2.0
_OUTCOME_S = 20.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class FrameReceiver(Driver):
    """Connects to the producer at `url` and takes one scan, over as many connections as needed.

    A thread owns the socket: it keeps the connection alive, and makes a new one, also while the caller computes.
    `credit_bytes` bounds the pixels that are on the way, waiting in `next`, or not yet used (at least two frames). One
    thread at a time may call the methods.

    * No answer from the producer within `connect_timeout_s`: every call raises PeerLostError.
    * No message on a connection for `silent_timeout_s` (a producer with nothing to send sends heartbeats): the
      connection counts as lost and another is made, with growing pauses. Where frames take long over a slow link,
      the time is doubled until one has come, and follows what that one took.
    * No message for `outage_timeout_s`, over however many connections: `Lost`.
    * The producer is connected and has credit, but for `stall_timeout_s` no frame has come: a warning in the log. Its
      source is slow or hangs.

    A receiver whose job was started again names the scan (`scan_id`) and what it `held` of it. With `saves` the
    producer keeps frames until `save` says that they are safe, otherwise until `ack`. With `reports` the stream stays
    open after `Ended` until `conclude` has told the producer what became of the scan.

    With `share` its frames hold only those rows of the scan; receivers that share a scan get it together.
    With `keys` the stream is encrypted, and only the producer whose key they hold is accepted.

    Raises ConfigError for an invalid address.
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
        outage_timeout_s: float = 600.0,
        silent_timeout_s: float = 5.0,
        heartbeat_s: float = 1.0,
        keys: CurveKeys | None = None,
        share: Share | None = None,
        held: Totals | None = None,
        saves: bool = False,
        reports: bool = False,
    ) -> None:
        super().__init__("frame receiver", url)
        channels_of(url)
        self._keys = keys
        self._max_frame_bytes = max_frame_bytes
        self._session = ReceiverSession(
            patience=Patience(
                first_contact_s=connect_timeout_s,
                outage_s=outage_timeout_s,
                stall_s=stall_timeout_s,
                silence_s=silent_timeout_s,
                heartbeat_s=heartbeat_s,
            ),
            now=time.monotonic(),
            credit_bytes=credit_bytes,
            max_frame_bytes=max_frame_bytes,
            scan=scan_id,
            share=share,
            held=held,
            saves=saves,
            reports=reports,
        )
        self._outcome: Written | None = None
        self._channel: Channel | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._bytes = 0
        self._dialled = 0
        self._trouble = ""
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        failure = "" if error is None else f"the receiver failed: {str(error) or type(error).__name__}"
        if failure and self._outcome is None:
            self._outcome = Written(volume=False, complete=False, text=line(failure))
        self.close(failure)

    def scan(self, timeout_s: float | None = None) -> Scan:
        """Wait until the producer has described the scan.

        Raises PeerLostError when it does not, ProtocolError when it speaks another version, PeerError when
        it rejects this receiver.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._session.info or self._over, timeout_s)
            if self._session.info is None:
                self._raise_failure()
                raise PeerLostError(f"{self._url}: no scan was announced{self._because}")
            return self._session.info.scan

    def next(self, timeout_s: float | None = None) -> Event | None:
        """The next event; None when the timeout expires, and after the last one (`Ended` or `Lost`).

        Raises ProtocolError when the producer violated the protocol.
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

        Rejected frames need no separate acknowledgement.
        """
        with self._changed:
            if seq >= self._session.consumed:
                self._session.ack(seq, time.monotonic())
                self._wake()

    def save(self, seq: int) -> None:
        """Every frame up to and including `seq` is safe: a receiver that is started again does not need it."""
        with self._changed:
            self._session.save(seq)
            self._wake()

    def conclude(self, *, written: bool, complete: bool, text: str = "") -> None:
        """After `Ended`: tell the producer whether a volume was written, and whether everything is in it."""
        self._outcome = Written(volume=written, complete=complete, text=line(text))
        with self._changed:
            self._session.conclude(self._outcome)
            self._wake()

    @property
    def report(self) -> ReceiverReport:
        """State of the stream."""
        with self._changed:
            session = self._session
            return ReceiverReport(
                received=session.received,
                refused=session.refused,
                acked=session.consumed,
                bytes=self._bytes,
                dialled=self._dialled,
                asked_again=session.asked_again,
                repeated=session.repeated,
            )

    def close(self, text: str = "", *, returns: bool = False) -> None:
        """End the stream. After `Ended`, with everything used, confirm this to the producer.

        Earlier, tell the producer that this receiver leaves, why, and whether its job will be restarted.
        """
        with self._changed:
            if self._session.exhausted:
                self._conclude()
            elif not self._over:
                self._session.leave(text, returns=returns)
            self._stopping = True
        self._join()

    def _conclude(self) -> None:
        self._session.conclude(self._outcome)
        self._wake()
        wait_s = _LINGER_S if self._outcome is None else _OUTCOME_S
        if not self._changed.wait_for(lambda: self._over, wait_s) and self._outcome is not None:
            _LOG.warning("%s: the producer did not confirm the outcome within %g s", self._url, wait_s)

    # the socket's thread

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._channel is not None:
            self._channel.wake()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while not self._finished():
                before = self._session.totals.next_seq
                self._connection()
                fruitful = self._session.totals.next_seq > before
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
        """Send what is due, take one message. False when this connection has ended."""
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
        except MinistreamError as error:
            with self._changed:
                last_words = self._session.outgoing(now)
            for parts in last_words:
                channel.send(parts)
            if self._session.state is ReceiverState.OVER:
                raise
            self._report_loss(str(error))
            return False
        return not self._broken(channel, received is None)

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
                    _LOG.warning("%s: the producer is connected but has sent no frame for %.0f s", self._url, seconds)
                case AskedAgain(text=text):
                    _LOG.warning("%s: %s; requested it again", self._url, text)
                case Lost(text=text, announced=announced):
                    self._events.put(Lost(f"{text}{self._because}", announced))
                case _:
                    self._events.put(event)

    def _broken(self, channel: Channel, nothing_came: bool) -> bool:
        silent = self._session.silent(time.monotonic())
        if not silent and not (channel.broken and nothing_came):
            return False
        self._report_loss(channel.broken or "silent")
        return True

    def _report_loss(self, trouble: str) -> None:
        """Log the first loss of a connection that worked; a producer that has not started yet is expected."""
        level = logging.WARNING if self._session.info is not None and not self._trouble else logging.DEBUG
        _LOG.log(level, "%s: connection lost (%s), reconnecting", self._url, trouble)
        self._trouble = trouble

    @property
    def _because(self) -> str:
        return f" (last attempt: {self._trouble})" if self._trouble else ""
