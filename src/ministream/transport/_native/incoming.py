"""One connection of a receiver, made again as often as needed; a scan that is striped comes over several."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from ministream import hosts, log
from ministream.errors import MinistreamError
from ministream.model import CurveKeys
from ministream.transport._channels import Channel, dial
from ministream.transport._wire import StreamReport
from ministream.wire.native import MAX_HEADER_BYTES
from ministream.wire.session import ReceiverEvent, ReceiverSession, ReceiverState

_LOG = log.get(__name__)

# How long the last messages may take to go out when a connection is closed.
LINGER_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class IncomingStream:
    """Connection `number` of a session; `run` belongs to one thread.

    The session, and `changed`, are shared with the other streams and with the caller's thread. `emit` takes events, in
    the order of the scan, with `changed` held. A stream whose connection fails tries the next of `urls`.
    """

    def __init__(
        self,
        number: int,
        urls: Sequence[str],
        session: ReceiverSession,
        changed: threading.Condition,
        *,
        emit: Callable[[Sequence[ReceiverEvent]], None],
        finished: Callable[[], bool],
        max_frame_bytes: int,
        keys: CurveKeys | None,
    ) -> None:
        self._number, self._urls, self._session, self._changed = number, urls, session, changed
        self._emit, self._finished = emit, finished
        self._max_message_bytes = max(max_frame_bytes, MAX_HEADER_BYTES)
        self._keys = keys
        self._channel: Channel | None = None
        self._failed = 0  # connections over which nothing came
        self._messages = 0
        self._frames = self._bytes = self._dialled = 0
        self.trouble = ""

    @property
    def report(self) -> StreamReport:
        """What came over it."""
        return StreamReport(frames=self._frames, bytes=self._bytes, connections=self._dialled)

    def wake(self) -> None:
        """Send what is due; called with `changed` held."""
        if self._channel is not None:
            self._channel.wake()

    def run(self) -> None:
        """Connect, again and again with growing pauses, until the session is over or the caller stops."""
        pause_s = _FIRST_PAUSE_S
        while not self._finished():
            frames, messages = self._frames, self._messages
            self._connection()
            self._failed += self._messages == messages
            pause_s = _FIRST_PAUSE_S if self._frames > frames else min(2 * pause_s, _LONGEST_PAUSE_S)
            with self._changed:
                if self._session.parting:
                    return
                due_s = self._session.wait_s(time.monotonic(), self._number)
                self._changed.wait_for(self._finished, min(pause_s, due_s))

    def _connection(self) -> None:
        """Make one connection and use it as long as it lasts."""
        urls = _every_address(self._urls)
        url = urls[(self._number + self._failed) % len(urls)]
        channel = dial(url, max_message_bytes=self._max_message_bytes, keys=self._keys)
        with self._changed:
            self._session.connect(time.monotonic(), self._number)
            self._channel = channel
            self._dialled += 1
        try:
            while self._exchange(channel, url):
                pass
        finally:
            with self._changed:
                self._channel = None
                self._session.disconnect(time.monotonic(), self._number)
                self._changed.notify_all()
            departed = self._session.departed(self._number)
            channel.close(LINGER_S if departed and not channel.broken else 0.0)
        self._take(None)  # the others may wait for what this one had in transit

    def _exchange(self, channel: Channel, url: str) -> bool:
        """Send what is due, take one message. False when this connection has ended."""
        with self._changed:
            finished = self._finished()
            now = time.monotonic()
            wait_s = self._session.wait_s(now, self._number)
            outgoing = self._session.outgoing(now, self._number)
        for parts in outgoing:
            channel.send(parts)
        if finished:
            return False
        received = channel.recv(wait_s)
        try:
            self._take(received)
        except MinistreamError as error:
            with self._changed:
                last_words = self._session.outgoing(now, self._number)
            for parts in last_words:
                channel.send(parts)
            if self._session.state is ReceiverState.OVER:
                raise
            self._report_loss(url, str(error))
            return False
        return not self._broken(channel, url, received is None)

    def _take(self, parts: list[memoryview] | None) -> None:
        with self._changed:
            now = time.monotonic()
            events = [] if parts is None else self._session.receive(parts, now, self._number)
            events += self._session.check(now)
            if parts is not None:
                self.trouble = ""
                self._messages += 1
                self._frames += len(parts) > 1
                self._bytes += sum(len(part) for part in parts[1:])
            self._emit(events)
            self._changed.notify_all()

    def _broken(self, channel: Channel, url: str, nothing_came: bool) -> bool:
        silent = self._session.silent(time.monotonic(), self._number)
        if not silent and not (channel.broken and nothing_came):
            return False
        self._report_loss(url, channel.broken or "silent")
        return True

    def _report_loss(self, url: str, trouble: str) -> None:
        """Log the first loss of a connection that worked; a producer that has not started yet is expected."""
        level = logging.WARNING if self._session.info is not None and not self.trouble else logging.DEBUG
        _LOG.log(level, "%s: connection lost (%s), reconnecting", url, trouble)
        self.trouble = trouble


def _every_address(urls: Sequence[str]) -> list[str]:
    """The addresses of all URLs: first one of each, so that the streams are spread over the URLs, then the others."""
    rounds = itertools.zip_longest(*map(hosts.addresses, urls))
    return [address for addresses in rounds for address in addresses if address is not None]
