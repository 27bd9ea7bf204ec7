"""The receiver's driver of the native wire: gives `wire.session.ReceiverSession` sockets, threads and a clock."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ministream import log
from ministream.errors import PeerLostError
from ministream.model import CurveKeys, Scan
from ministream.transport._channels import channels_of
from ministream.transport._native.driver import Driver
from ministream.transport._native.incoming import LINGER_S, IncomingStream
from ministream.transport._wire import Event, ReceiverReport
from ministream.wire.native import Share, Totals, Written, line
from ministream.wire.session import (
    Arrived,
    AskedAgain,
    Lost,
    Patience,
    ReceiverEvent,
    ReceiverSession,
    ReceiverState,
    Stalled,
)

_LOG = log.get(__name__)

# How long the producer may take to confirm the outcome when the stream is closed, perhaps over a new connection.
_OUTCOME_S = 20.0


class FrameReceiver(Driver):
    """Connects to the producer at `url` and takes one scan, striped over `streams` connections.

    `url` may be several, all of the one producer; the streams are spread over them. A thread for each connection keeps
    it alive, and makes a new one, also while the caller computes. While one is lost the others carry the scan.
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
        url: str | Sequence[str],
        *,
        streams: int = 1,
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
        urls = [url] if isinstance(url, str) else list(url)
        super().__init__("frame receiver", urls[0])
        for each in urls:
            channels_of(each)
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
            streams=streams,
        )
        self._outcome: Written | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._first_error: Exception | None = None
        self._streams = [
            IncomingStream(
                *(number, urls, self._session, self._changed),
                emit=self._emit,
                finished=self._finished,
                max_frame_bytes=max_frame_bytes,
                keys=keys,
            )
            for number in range(streams)
        ]
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
            if seq >= self._session.intake.consumed:
                self._session.ack(seq, time.monotonic())
                self._report()

    def save(self, seq: int) -> None:
        """Every frame up to and including `seq` is safe: a receiver that is started again does not need it."""
        with self._changed:
            self._session.intake.save(seq)
            self._report()

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
            intake, streams = self._session.intake, tuple(stream.report for stream in self._streams)
            return ReceiverReport(
                received=intake.received,
                refused=intake.refused,
                acked=intake.consumed,
                bytes=sum(stream.bytes for stream in streams),
                dialled=sum(stream.connections for stream in streams),
                asked_again=intake.asked_again,
                repeated=intake.repeated,
                streams=streams,
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
        wait_s = LINGER_S if self._outcome is None else _OUTCOME_S
        if not self._changed.wait_for(lambda: self._over, wait_s) and self._outcome is not None:
            _LOG.warning("%s: the producer did not confirm the outcome within %g s", self._url, wait_s)

    # the sockets' threads

    def _wake(self) -> None:
        self._changed.notify_all()
        for stream in self._streams:
            stream.wake()

    def _report(self) -> None:
        """Wake the thread that tells the producer what was used; called with `_changed` held."""
        if (speaker := self._session.speaker) is not None:
            self._streams[speaker].wake()

    def _run(self) -> None:
        first, *others = self._streams
        threads = [threading.Thread(target=self._run_beside, args=(stream,), daemon=True) for stream in others]
        for thread in threads:
            thread.start()
        try:
            self._run_stream(first)
            for thread in threads:
                thread.join()
            if self._first_error is not None:
                raise self._first_error
        except PeerLostError as error:
            raise PeerLostError(f"{error}{self._because}") from None
        finally:
            self._events.put(None)

    def _run_beside(self, stream: IncomingStream) -> None:
        """The other streams begin when the first has brought the description of the scan."""
        with self._changed:
            self._changed.wait_for(lambda: self._session.info or self._finished())
        try:
            self._run_stream(stream)
        except Exception as error:  # noqa: BLE001 raised in the thread of the first stream
            with self._changed:
                self._first_error = self._first_error or error
                self._stopping = True

    def _run_stream(self, stream: IncomingStream) -> None:
        try:
            stream.run()
        finally:
            with self._changed:  # when it is over for one, it is over for all
                self._wake()

    def _finished(self) -> bool:
        return self._stopping or self._session.state is ReceiverState.OVER

    def _emit(self, events: Sequence[ReceiverEvent]) -> None:
        for event in events:
            match event:
                case Stalled(seconds=seconds):
                    _LOG.warning("%s: the producer is connected but has sent no frame for %.0f s", self._url, seconds)
                case AskedAgain(text=text):
                    _LOG.warning("%s: %s; requested it again", self._url, text)
                    self._report()
                case Lost(text=text, announced=announced):
                    self._events.put(Lost(f"{text}{self._because}", announced))
                case Arrived(seq=seq, frame=frame):
                    self._events.put(Arrived(seq, frame, time.time()))
                case _:
                    self._events.put(event)

    @property
    def _because(self) -> str:
        trouble = next((stream.trouble for stream in self._streams if stream.trouble), "")
        return f" (last attempt: {trouble})" if trouble else ""
