"""Rank 0's receiving side: its end of the tunnel, the receiver, and the count of every frame."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from ministream import log
from ministream.app.announce import announce
from ministream.app.gateway import embedded
from ministream.config import Config
from ministream.errors import ConfigError, FrameError, MinistreamError
from ministream.model import Counters, Frame, FrameKind, Scan
from ministream.transport import Arrived, Ended, FrameReceiver, Lost, Refused

_LOG = log.get(__name__)


class Ingress:
    """Receives the frames of one scan and hands them out without waiting.

    `complete` says, after the end, whether every projection of the scan arrived; `ending` is one line that says
    how it ended. `failure` is an error that must end the job once the ranks have stopped.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = ExitStack()
        self._server = embedded(config.tunnel, "CONS", targets=())
        self._receiver: FrameReceiver | None = None
        self._over = False
        self._fed = 0
        self._unacknowledged: list[int] = []
        self.counters = Counters()
        self.complete = False
        self.ending = ""
        self.failure: MinistreamError | None = None
        self.tunnel: dict[str, str | None] = {"kind": "none", "cipher": None}
        if self._server is None and config.stream.connect is None:
            raise ConfigError(
                "no way to the producer: give --connect tcp://HOST:PORT for a direct connection, "
                "or --control HOST:PORT to host this side's end of a tunnel"
            )

    def __enter__(self) -> Self:
        if self._server is not None:
            self._stack.enter_context(self._server)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def announce(self, path: Path | None) -> None:
        """Tell the launcher where this side's S2CS listens."""
        announce(path, control=self._server.address if self._server else None, data=self._config.stream.connect)

    def scan(self) -> Scan:
        """Wait for the tunnel, the producer, and what it says of the scan.

        Raises PeerLostError when one stays away longer than the configured time.
        """
        stream = self._config.stream
        url = stream.connect
        if self._server is not None:
            session = self._server.wait_session(stream.connect_timeout_s)
            url = f"tcp://{session.listeners[0]}"
        self._receiver = self._stack.enter_context(
            FrameReceiver(
                str(url),
                credit_bytes=int(stream.credit_mib * 2**20),
                connect_timeout_s=stream.connect_timeout_s,
                stall_timeout_s=stream.stall_timeout_s,
            )
        )
        return self._receiver.scan()

    def begin(self, *, batch: int, step: int) -> None:
        """Fix how many frames go out at once, and that no batch reaches past an update of the window."""
        self._batch, self._step = batch, step

    def feed(self) -> Sequence[Frame] | None:
        """The frames that have arrived, at most a batch; none yet: an empty list; no more: None."""
        assert self._receiver is not None
        frames: list[Frame] = []
        while not self._over and len(frames) < self._batch:
            event = self._receiver.next(0)
            if event is None:
                break
            frame = self._take(event)
            if frame is not None:
                frames.append(frame)
                if frame.kind is FrameKind.PROJECTION:
                    self._fed += 1
                    if self._fed % self._step == 0:
                        break
        return frames or (None if self._over else [])

    def acknowledge(self) -> None:
        """Everything handed out so far has reached its window: let the producer send more."""
        assert self._receiver is not None
        for seq in self._unacknowledged:
            self._receiver.ack(seq)
        self._unacknowledged.clear()

    def _take(self, event: Arrived | Refused | Ended | Lost) -> Frame | None:
        match event:
            case Arrived(seq=seq, frame=frame):
                self._unacknowledged.append(seq)
                self.counters.received += frame.kind is FrameKind.PROJECTION
                return frame
            case Refused(seq=seq, reason=reason, text=text):
                self._unacknowledged.append(seq)
                self.counters.refuse(reason)
                _LOG.warning("frame refused: %s", text)
                if self._config.stream.strict:
                    self._finish(text, failure=FrameError(f"{text} (--strict)"))
            case Ended(totals=totals):
                self.counters.sent, self.counters.dropped = totals.projections, totals.dropped
                self._finish("every frame arrived")
            case Lost(text=text):
                self._finish(text)
        return None
