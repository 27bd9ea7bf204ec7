"""Follows a running job: a thread that asks rank 0, and connects again when the job is restarted."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self

from ministream import log
from ministream.errors import ConfigError, MinistreamError, VersionError
from ministream.model import CurveKeys
from ministream.transport import Channel, dial
from ministream.view.feed import Pixels, Shown
from ministream.wire import live
from ministream.wire.live import MAX_PICTURES, JobState, Look, Picture, Shape

_LOG = log.get(__name__)

LOST_S = 5.0
"""Without an answer for this time the connection counts as lost, and is opened again."""
AGAIN_S = 0.5
_LOOK_S = 0.2
MAX_MESSAGE_BYTES = 4 * live.MAX_SIDE**2
_ENDED = ("finished", "incomplete")

Target = Callable[[], tuple[str, CurveKeys] | None]
"""Where the job is now: its address and the keys; None while there is no job. May raise ConfigError."""


class LiveFeed:
    """Shows the job at `target`, which is asked again for every connection. A context manager."""

    def __init__(self, target: Target, source: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._shown = Shown(text="no job has answered yet", source=source)
        self._wanted: tuple[Picture, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live feed", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def want(self, pictures: Iterable[Picture]) -> None:
        """Ask for these pictures from the next request on."""
        self._wanted = tuple(dict.fromkeys(pictures))[:MAX_PICTURES]

    def shown(self) -> Shown:
        """The newest."""
        return self._shown

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._target()
                if found is not None:
                    self._follow(*found)
            except MinistreamError as error:
                self._lose(str(error))
                if isinstance(error, (ConfigError, VersionError)):
                    _LOG.warning("%s", error)
            self._stop.wait(AGAIN_S)

    def _follow(self, address: str, keys: CurveKeys) -> None:
        """Ask over one connection until it ends."""
        channel = dial(address, max_message_bytes=MAX_MESSAGE_BYTES, keys=keys)
        try:
            ticket = b""
            while not self._stop.is_set():
                channel.send([live.encode(self._look(ticket))])
                parts = self._received(channel)
                if self._stop.is_set():
                    return
                if parts is None:
                    self._lose(f"no answer from {address}: {channel.broken or 'timed out'}")
                    return
                state = live.decode(parts[0], JobState)
                ticket = state.ticket
                self._take(state, live.pixels_of(state.pictures, parts[1:]))
        finally:
            channel.close()

    def _received(self, channel: Channel) -> list[memoryview] | None:
        """The next answer; None if the connection broke, nothing came for LOST_S, or this feed ends."""
        end, parts = time.monotonic() + LOST_S, None
        while parts is None and not channel.broken and time.monotonic() < end and not self._stop.is_set():
            parts = channel.recv(_LOOK_S)
        return parts

    def _look(self, ticket: bytes) -> Look:
        state, updates, wanted = self._shown.state, self._shown.updates, self._wanted
        return Look(
            ticket=ticket,
            job=state.job if state is not None else "",
            state=state.number if state is not None else 0,
            updates=updates[-1].index if updates else 0,
            pictures=wanted,
            held=tuple(picture for picture in wanted if picture in self._shown.pictures),
        )

    def _take(self, state: JobState, pixels: list[Pixels]) -> None:
        before, wanted = self._shown, self._wanted
        same = before.state is not None and before.state.job == state.job
        kept = {picture: held for picture, held in before.pictures.items() if same and picture in wanted}
        new: dict[Picture, tuple[Shape, Pixels]] = {
            shape.picture: (shape, values) for shape, values in zip(state.pictures, pixels, strict=True)
        }
        known = before.updates if same else ()
        first = state.updates[0].index if state.updates else 0
        self._shown = Shown(
            serial=before.serial + 1,
            condition=state.phase,
            text=state.text,
            source=before.source,
            state=state,
            updates=(*(record for record in known if not first or record.index < first), *state.updates),
            pictures=kept | new,
        )

    def _lose(self, text: str) -> None:
        """The last state stays visible; the end of a job that has concluded is not a loss."""
        before = self._shown
        if before.condition in _ENDED or before.state is None:
            return
        self._shown = dataclasses.replace(before, serial=before.serial + 1, condition="lost", text=text)
