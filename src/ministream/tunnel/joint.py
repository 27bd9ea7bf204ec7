"""One session on two control servers, as the client that joined them sees it; opened again where a server lost it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ministream import log
from ministream.errors import MinistreamError
from ministream.tunnel.control_client import Answer, ControlClient
from ministream.tunnel.role import Role

LOOK_S = 5.0
_RETRY_MIN_S = 1.0
_RETRY_MAX_S = 15.0
_REOPEN_S = 20.0
_JOIN_S = 2.0

_LOG = log.get(__name__)


class Joint:
    """What was asked of both servers, and what they answered."""

    def __init__(
        self,
        uid: str,
        prod: ControlClient,
        cons: ControlClient,
        *,
        num_conn: int,
        rate: int,
        targets: Sequence[str],
    ) -> None:
        """`targets` are the producer's data addresses; none: those that its control server knows."""
        self.uid = uid
        self._servers = {Role.PROD: prod, Role.CONS: cons}
        self._targets: dict[Role, Sequence[str]] = {Role.PROD: targets, Role.CONS: ()}
        self._num_conn, self._rate = num_conn, rate
        self._answers: dict[Role, Answer] = {}

    @property
    def producer(self) -> Answer:
        """The answer of the control server beside the producer."""
        return self._answers[Role.PROD]

    @property
    def consumer(self) -> Answer:
        """The answer of the control server beside the consumer."""
        return self._answers[Role.CONS]

    def open(self, timeout_s: float, roles: Sequence[Role] = tuple(Role)) -> None:
        """Open the session with these roles' servers, and join both sides.

        Raises AccessError, PeerLostError or TunnelError.
        """
        give_up = time.monotonic() + timeout_s
        for role in roles:
            self._answers[role] = self._servers[role].open(
                self.uid,
                role,
                num_conn=self._num_conn,
                rate=self._rate,
                targets=self._targets[role],
                timeout_s=max(1.0, give_up - time.monotonic()),
            )
        # PROD first: it must know the consumer's certificate before the consumer's relay connects.
        producer, consumer = self.producer, self.consumer
        self._servers[Role.PROD].update(self.uid, Role.PROD, producer.prod_listeners, consumer.offer)
        self._servers[Role.CONS].update(self.uid, Role.CONS, producer.listeners, producer.offer)

    def reopen(self) -> bool:
        """Reopen the session on servers that lost it. Returns whether any had.

        Raises PeerLostError for a server that does not answer, AccessError or TunnelError for one that refuses.
        """
        lost = [role for role, server in self._servers.items() if not server.holds(self.uid)]
        if lost:
            self.open(_REOPEN_S, lost)
            where = " and ".join(str(self._servers[role].endpoint) for role in lost)
            listeners = ", ".join(self.consumer.listeners)
            _LOG.warning("session %s reopened at %s; the consumer connects to %s", self.uid, where, listeners)
        return bool(lost)


class Reopening:
    """A thread that keeps a joint open for the length of a block."""

    def __init__(self, joint: Joint) -> None:
        self._joint = joint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # A call that is under way ends with its channel.
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        pause_s, said = LOOK_S, False
        while not self._stop.wait(pause_s):
            try:
                self._joint.reopen()
                pause_s, said = LOOK_S, False
            except MinistreamError as error:
                if not said:
                    _LOG.info("session %s: %s; reconnecting", self._joint.uid, error)
                said = True
                pause_s = _RETRY_MIN_S if pause_s == LOOK_S else min(2 * pause_s, _RETRY_MAX_S)
