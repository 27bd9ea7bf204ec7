"""Messages between rank 0 and the other ranks that nobody waits for: the newest one replaces an unsent one."""

from __future__ import annotations

from typing import Any

from ministream.parallel.mpi import Comm, Request

_TAG = 2


class Mailbox:
    """One rank's end; every rank creates one, in the same order, and calls `poll` often. Not collective.

    The others `post` objects to rank 0, and rank 0 `tell`s all of them something: both return at once.
    """

    def __init__(self, comm: Comm) -> None:
        self._raw, self._peers = comm.dup().raw, range(1, comm.size) if comm.rank == 0 else range(1)
        self._sending: dict[int, Request] = {}
        self._unsent: dict[int, Any] = {}
        self._arriving: dict[int, Request] = {}
        self._alone = comm.size == 1

    def post(self, value: Any) -> None:
        """Send `value` to rank 0, or from rank 0 to all others, as soon as what was sent before has arrived."""
        if not self._alone:
            self._unsent = dict.fromkeys(self._peers, value)
            self._send()

    def poll(self) -> list[tuple[int, Any]]:
        """What has arrived since the last call, with the rank that sent it."""
        if self._alone:
            return []
        self._send()
        return [arrived for rank in self._peers for arrived in self._received(rank)]

    @property
    def busy(self) -> bool:
        """Whether something is not sent yet."""
        self._send()
        return bool(self._unsent or self._sending)

    def _send(self) -> None:
        for rank in [rank for rank, request in self._sending.items() if request.Test()]:
            del self._sending[rank]
        for rank in [rank for rank in self._unsent if rank not in self._sending]:
            self._sending[rank] = self._raw.isend(self._unsent.pop(rank), dest=rank, tag=_TAG)

    def _received(self, rank: int) -> list[tuple[int, Any]]:
        if rank not in self._arriving:
            message = self._raw.improbe(source=rank, tag=_TAG)
            if message is None:
                return []
            self._arriving[rank] = message.irecv()
        done, value = self._arriving[rank].test()
        if not done:
            return []
        del self._arriving[rank]
        return [(rank, value)]
