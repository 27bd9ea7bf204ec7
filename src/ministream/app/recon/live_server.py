"""Rank 0's end of the live view: a thread that answers viewers from the latest state. The job never waits for it."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ministream import log
from ministream.errors import ConfigError, ProtocolError
from ministream.model import CurveKeys
from ministream.transport import listen
from ministream.wire import live
from ministream.wire.live import Command, JobState, Look, Phase, Picture, Shape, Steer, Steered, UpdateRecord

_LOG = log.get(__name__)

MAX_VIEWERS = 32
MAX_COMMANDS = 16
"""Commands of operators that wait for the next update."""
WANTED_S = 15.0
"""A viewer that has not asked for this time is forgotten, and its pictures are no longer computed."""
MAX_WANTED = 32
MAX_UPDATES = 4096
"""Updates whose records a viewer can ask for."""
STALLED_S = 10.0
_TICKET_BYTES = 8
_LOOK_S = 0.2

Pixels = NDArray[np.float32]


@dataclass(slots=True)
class _Viewer:
    """One connection: the ticket of its next request, and its request that is not answered yet."""

    ticket: bytes
    asked_s: float
    look: Look
    pending: bool = True


@dataclass(slots=True)
class _Store:
    """The latest state, replaced as a whole; `pictures` with the number of the state that brought them."""

    state: JobState | None = None
    arrived_s: float = 0.0
    alive_s: float = 0.0
    updates: list[UpdateRecord] = field(default_factory=list)
    pictures: dict[Picture, tuple[int, Shape, Pixels]] = field(default_factory=dict)


class LiveServer:
    """Serves viewers at `url`; `address` has the real port.

    Raises ConfigError for an address that cannot be bound.
    """

    def __init__(
        self,
        url: str,
        keys: CurveKeys,
        *,
        stalled_s: float = STALLED_S,
        operator: bytes | None = None,
        check: Callable[[Command, float | None], None] = lambda _command, _value: None,
    ) -> None:
        self.job = secrets.token_hex(8)
        self._listener = listen(url, max_message_bytes=live.MAX_REQUEST_BYTES, keys=keys)
        self.address = self._listener.address
        self._stalled_s = stalled_s
        self._lock = threading.Lock()
        self._store = _Store()
        self._viewers: dict[bytes, _Viewer] = {}
        self._operator, self._check = operator, check
        self._commands: deque[tuple[Command, float | None]] = deque()
        self._full = self._stop = self._denied = False
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wanted(self) -> tuple[Picture, ...]:
        """The pictures that viewers ask for, those of the latest requests first, at most MAX_WANTED."""
        now = time.monotonic()
        with self._lock:
            latest = sorted(self._viewers.values(), key=lambda viewer: -viewer.asked_s)
            looks = [viewer.look for viewer in latest if now - viewer.asked_s < WANTED_S]
        return tuple(dict.fromkeys(picture for look in looks for picture in look.pictures))[:MAX_WANTED]

    def commands(self) -> list[tuple[Command, float | None]]:
        """The commands that were accepted since the last call."""
        with self._lock:
            found = list(self._commands)
            self._commands.clear()
        return found

    def publish(self, state: JobState, *, arrived_s: float) -> None:
        """Replace the state; the newest projection arrived at the monotonic time `arrived_s`."""
        with self._lock:
            store = self._store
            number = store.state.number + 1 if store.state is not None else 1
            store.state = msgspec.structs.replace(state, number=number)
            store.arrived_s, store.alive_s = arrived_s, time.monotonic()
        self._listener.wake()

    def updated(self, record: UpdateRecord) -> None:
        """Add the record of an update, or replace that of the same update; the next `publish` shows it."""
        with self._lock:
            updates = self._store.updates
            if updates and updates[-1].index == record.index:
                updates.pop()
            updates.append(record)
            del updates[:-MAX_UPDATES]

    def show(self, pictures: Mapping[Shape, Pixels]) -> None:
        """Replace pictures; the next `publish` shows them."""
        with self._lock:
            store = self._store
            number = store.state.number + 1 if store.state is not None else 1
            wanted = {look for viewer in self._viewers.values() for look in viewer.look.pictures}
            store.pictures = {picture: held for picture, held in store.pictures.items() if picture in wanted}
            store.pictures |= {shape.picture: (number, shape, pixels) for shape, pixels in pictures.items()}

    def alive(self) -> None:
        """The job still makes progress, without news."""
        self._store.alive_s = time.monotonic()

    def close(self, linger_s: float = 0.0) -> None:
        """Wait up to `linger_s` until every viewer has the last state, then end. May be repeated."""
        if self._stop:
            return
        end = time.monotonic() + linger_s
        while self._owing() and time.monotonic() < end:
            time.sleep(0.02)
        self._stop = True
        self._listener.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close(min(linger_s, 1.0))

    def _owing(self) -> bool:
        """Whether a viewer that still asks lacks the last state."""
        now = time.monotonic()
        with self._lock:
            state = self._store.state
            recent = [one for one in self._viewers.values() if now - one.asked_s < 3 * live.IDLE_S]
            return state is not None and any(one.look.state < state.number for one in recent)

    def _run(self) -> None:
        try:
            while not self._stop:
                arrived = self._listener.recv(_LOOK_S)
                with self._lock:
                    if arrived is not None:
                        self._take(*arrived)
                    self._answer()
        except Exception as error:  # noqa: BLE001 - the job goes on without its viewers
            _LOG.warning("live view ended, the run continues: %s: %s", type(error).__name__, error)

    def _take(self, peer: bytes, parts: Sequence[memoryview]) -> None:
        try:
            (header,) = parts
            look = live.decode_request(header)
        except (ValueError, ProtocolError) as error:
            _LOG.debug("request rejected: %s", error)
            return
        if isinstance(look, Steer):
            self._listener.send(peer, [live.encode(self._steered(look))])
            return
        now, known = time.monotonic(), self._viewers.get(peer)
        if known is not None and (known.pending or known.ticket != look.ticket):
            return  # it has not read the last answer yet
        self._forget(now)
        if known is None and len(self._viewers) >= MAX_VIEWERS:
            if not self._full:
                _LOG.warning("live view: more than %d viewers, further ones are not answered", MAX_VIEWERS)
            self._full = True
            return
        self._listener.admit(peer)
        self._viewers[peer] = _Viewer(b"", now, look)

    def _steered(self, steer: Steer) -> Steered:
        """Accept a command, or say why not."""
        if self._operator is None or not hmac.compare_digest(steer.operator, self._operator):
            level = logging.DEBUG if self._denied else logging.WARNING
            _LOG.log(level, "steering refused: %s without the operator's token (logged once)", steer.command)
            self._denied = True
            return Steered(accepted=False, denied=True, text="steering needs the operator's token of this job")
        if len(self._commands) >= MAX_COMMANDS:
            return Steered(accepted=False, text=f"{MAX_COMMANDS} commands wait already: wait for the next update")
        try:
            self._check(steer.command, steer.value)
        except ConfigError as error:
            return Steered(accepted=False, text=str(error)[:1000])
        self._commands.append((steer.command, steer.value))
        when = "now" if steer.command == "finish" else "after the next update"
        return Steered(accepted=True, text=f"{steer.command}: {when}")

    def _forget(self, now: float) -> None:
        gone = [peer for peer, viewer in self._viewers.items() if now - viewer.asked_s > WANTED_S]
        for peer in gone:
            del self._viewers[peer]

    def _answer(self) -> None:
        """Answer the requests for which there is news, and those that have waited for IDLE_S."""
        now, state = time.monotonic(), self._store.state
        if state is None:
            return
        for peer, viewer in self._viewers.items():
            newer = viewer.look.job != self.job or viewer.look.state < state.number
            if viewer.pending and (newer or self._news(viewer.look) or now - viewer.asked_s > live.IDLE_S):
                viewer.ticket, viewer.pending = secrets.token_bytes(_TICKET_BYTES), False
                self._listener.send(peer, self._parts(viewer, state, now))

    def _parts(self, viewer: _Viewer, state: JobState, now: float) -> list[bytes | memoryview]:
        new = self._news(viewer.look)
        known = viewer.look.updates if viewer.look.job == self.job else 0
        phase, text = self._phase(state, now)
        answer = msgspec.structs.replace(
            state,
            ticket=viewer.ticket,
            phase=phase,
            text=text,
            updates=tuple(record for record in self._store.updates if record.index > known),
            pictures=tuple(shape for shape, _ in new),
        )
        return [live.encode(answer), *(pixels.data.cast("B") for _, pixels in new)]

    def _news(self, look: Look) -> list[tuple[Shape, Pixels]]:
        """The pictures that this viewer wants and does not have."""
        pictures = self._store.pictures
        found = [(picture, *pictures[picture]) for picture in look.pictures if picture in pictures]
        held = look.held if look.job == self.job else ()
        return [
            (shape, pixels) for picture, number, shape, pixels in found if picture not in held or number > look.state
        ]

    def _phase(self, state: JobState, now: float) -> tuple[Phase, str]:
        """A job that claims to be live is stalled if nothing has arrived for a while, or if it does not react."""
        if state.phase != "live":
            return state.phase, state.text
        silent_s, idle_s = now - self._store.alive_s, now - self._store.arrived_s
        if silent_s > self._stalled_s:
            return "stalled", f"rank 0 has not responded for {silent_s:.0f} s"
        if idle_s > self._stalled_s:
            return "stalled", f"no projection for {idle_s:.0f} s"
        return state.phase, state.text
