"""Rank 0's receiving side: its end of the tunnel, the receiver, and the fate of every frame."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from ministream import log
from ministream.app.announce import announce
from ministream.app.gateway import embedded, own_session
from ministream.app.receivers import Receiver, open_receiver, receiver_keys
from ministream.config import Config
from ministream.errors import ConfigError, FrameError, MinistreamError
from ministream.model import Counters, Frame, FrameKind, Scan
from ministream.transport import Arrived, Ended, Event, Lost, Refused

_LOG = log.get(__name__)


class Ingress:
    """Receives the frames of one scan and hands them out without waiting.

    After the end `complete` says whether every projection that was sent arrived whole, `ending` says in one line
    how it ended, and `failure` is the error that must end the job, if any.

    `worker` is (rank, size) where every rank has an ingress of its own; a refused frame ends the stream then, because
    the other ranks cannot leave the same projection out.

    Raises ConfigError where the configuration names no way to the producer.
    """

    def __init__(self, config: Config, announce_to: Path | None, worker: tuple[int, int] = (0, 1)) -> None:
        self._config, self._stream = config, config.stream
        self._worker = worker
        self._stack = ExitStack()
        self._receiver: Receiver | None = None
        self._over = False
        self._batch = self._step = 1
        self._projections_fed = 0
        self._last_seq = -1
        self._taken = 0
        self._session_uid: str | None = None
        self.counters = Counters()
        self.complete = False
        self.ending = ""
        self.failure: MinistreamError | None = None
        self._strict = config.stream.strict or config.aps.every_rank
        if config.aps.every_rank and (config.stream.wire != "tracemq" or config.tunnel.control is not None):
            raise ConfigError("[aps] every_rank is for --source-wire tracemq without a tunnel")
        receiver_keys(config)  # what is wrong with them is said before anybody waits
        self._server = embedded(config.tunnel, "CONS")
        if self._server is None and self._stream.connect is None:
            raise ConfigError(
                "no way to the producer: give --connect tcp://HOST:PORT for a direct connection, "
                "--producer HOST:PORT for a tunnel to the producer's control server, or --control HOST:PORT to host "
                "this side's end of a tunnel that somebody else opens"
            )
        if self._server is not None:
            self._stack.enter_context(self._server)
        announce(announce_to, control=self._server.address if self._server else None, data=self._stream.connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_for_scan(self) -> Scan:
        """Wait for the tunnel, the producer, and what it says of the scan.

        From then on an interrupt ends the stream in order; a second one ends the job at once.

        Raises PeerLostError when one stays away longer than the configured time, ProtocolError when the producer
        speaks another protocol.
        """
        urls = [str(self._stream.connect)]
        if self._server is not None:
            if self._config.tunnel.producer is not None:
                connections = 2 if self._config.aps.sync else 1
                opened = own_session(self._config.tunnel, self._server, connections, self._stream.connect_timeout_s)
                self._stack.enter_context(opened)
            session = self._server.wait_session(self._stream.connect_timeout_s)
            self._session_uid = session.uid
            urls = [f"tcp://{listener}" for listener in session.listeners]
        self._receiver = self._stack.enter_context(open_receiver(self._config, urls, self._worker))
        scan = self._receiver.scan()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._interrupt)
        return scan

    def begin(self, *, batch: int, step: int) -> None:
        """Hand out at most `batch` frames at once, and end a batch where the window's next update is due."""
        self._batch, self._step = batch, step

    def feed(self) -> Sequence[Frame] | None:
        """The frames that have arrived, an empty list where none has, None when no more will come."""
        assert self._receiver is not None
        frames: list[Frame] = []
        while not self._over and len(frames) < self._batch:
            event = self._receiver.next(0)
            if event is None:
                break
            frame = self._take(event)
            if frame is None:
                continue
            frames.append(frame)
            self._projections_fed += frame.kind is FrameKind.PROJECTION
            if frame.kind is FrameKind.PROJECTION and self._projections_fed % self._step == 0:
                break
        return frames or (None if self._over else [])

    def acknowledge(self) -> None:
        """Everything handed out so far has reached its window: let the producer send more."""
        assert self._receiver is not None
        if self._last_seq >= 0:
            self._receiver.ack(self._last_seq)

    @property
    def waiting(self) -> int:
        """Whole frames that have come and have not been handed out."""
        return self._receiver.report.received - self._taken if self._receiver is not None else 0

    @property
    def bytes_received(self) -> int:
        """Bytes of pixels that came over the data connection."""
        return self._receiver.report.bytes if self._receiver is not None else 0

    def tunnel(self) -> dict[str, str] | None:
        """Kind of data server and cipher of the tunnel in use; None without one."""
        if self._server is None or self._session_uid is None:
            return None
        session = next((s for s in self._server.sessions() if s.uid == self._session_uid), None)
        if session is None:
            return {"kind": "gone"}
        return {"kind": session.kind, "cipher": session.traffic.cipher or "none"}

    def _take(self, event: Event) -> Frame | None:
        match event:
            case Arrived(seq=seq, frame=frame):
                self._last_seq = seq
                self._taken += 1
                self.counters.received += frame.kind is FrameKind.PROJECTION
                return frame
            case Refused(seq=seq, reason=reason, text=text):
                self._last_seq = seq
                self.counters.refuse(reason)
                _LOG.warning("frame refused: %s", text)
                if self._strict:
                    self._end(text, FrameError(f"{text}; the job is strict"))
            case Ended(totals=totals):
                self.counters.sent, self.counters.dropped = totals.projections, totals.dropped
                self._end("the producer sent everything")
                whole = self.counters.received == totals.projections
                self.complete = whole and not (totals.dropped or self.counters.refused)
            case Lost(text=text):
                self._end(text)
        return None

    def _end(self, how: str, failure: MinistreamError | None = None) -> None:
        self._over, self.ending, self.failure = True, how, failure
        _LOG.info("end of the stream: %s", how)

    def _interrupt(self, number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._end(f"stopped by {signal.Signals(number).name} after {self._projections_fed} projections")
