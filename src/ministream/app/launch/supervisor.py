"""Watches one job of a pair: its process, its partner's traces at their meeting, and what the operator asks."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ministream import log
from ministream.app.launch.processes import KILL_AFTER_S, Child
from ministream.app.launch.rendezvous import PARTNER, Card, JobSide, Meeting, Outcome
from ministream.errors import ExitCode, MinistreamError

_LOG = log.get(__name__)

JOB: dict[JobSide, str] = {"producer": "the producer job", "recon": "the reconstruction job"}

# The folder may be on a file system that many share: a few looks per second do not burden it.
LOOK_S = 0.2

# A peer's failure is felt through the stream before its own account of it reaches the meeting; mpirun takes seconds to
# end the ranks and itself.
ACCOUNT_S = 10.0

# A job whose partner has finished gets this long to finish too.
LINGER_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long a partner may stay away, and how long finishing the window and writing may take, in seconds."""

    partner_s: float = 900.0
    finish_s: float = 90.0


class Supervisor:
    """Sees one job from its start to its outcome, without ever waiting: call `step` until there is an `outcome`.

    A reconstruction that ended in order (0 complete, 3 incomplete) decides by its own exit code. Otherwise the
    side that failed first gives its code and its reason to both.

    `connect`, for the side that opens the tunnel's session, starts the client from the two control addresses.
    `after` runs once the job has ended in order, and may still fail it.
    """

    def __init__(
        self,
        side: JobSide,
        child: Child,
        meeting: Meeting,
        *,
        job: str,
        announcement: Path,
        timeouts: Timeouts,
        connect: Callable[[Card, str], Child] | None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self.outcome: Outcome | None = None
        self._side, self._child, self._meeting = side, child, meeting
        self._job, self._announcement, self._timeouts = job, announcement, timeouts
        self._connect, self._after = connect, after
        self._control: str | None = None
        self._partner: Card | None = None
        self._client: Child | None = None
        self._open = False
        self._verdict: Outcome | None = None
        self._look_at = 0.0
        self._partner_by = time.monotonic() + timeouts.partner_s
        self._end_by: float | None = None
        self._account_by: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in filter(None, (self._client, self._child)):
            child.end(KILL_AFTER_S)
        if self.outcome is None:
            self._meeting.finish(Outcome(code=ExitCode.PEER, reason=f"{self._job}: its launcher failed"))

    def step(self) -> None:
        """Look once at everything there is to see, and do what follows from it."""
        if self.outcome is not None:
            return
        try:
            self._step()
        except MinistreamError as error:
            self._end(Outcome(code=error.exit_code, reason=str(error)))

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """Let the job end; a reconstruction that has begun finishes its window and writes, unless `at_once`."""
        if self.outcome is None:
            self._end(Outcome(code=ExitCode.PEER, reason=f"{self._job} was ended by {why}"), at_once=at_once)

    def _step(self) -> None:
        code, now = self._child.code, time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look()
        if code is not None:
            self._conclude(code)
        elif self._end_by is not None and now > self._end_by:
            self._child.end(KILL_AFTER_S)

    def _look(self) -> None:
        ended = self._meeting.partner_outcome()
        # a producer that dropped projections has still sent the rest to the end
        sent_all = self._side == "recon" and ended is not None and ended.code == ExitCode.INCOMPLETE
        if ended is not None and ended.failed and not sent_all:
            self._end(Outcome(code=ended.code, reason=f"{JOB[PARTNER[self._side]]} ended first: {ended.reason}"))
        elif ended is not None and self._side == "producer" and self._end_by is None:
            self._end_by = time.monotonic() + LINGER_S
        elif self._control is None and self._announcement.exists():
            self._publish()
        elif self._control is not None and self._partner is None:
            self._find_partner(self._control)
        elif self._client is not None and not self._open:
            self._watch_client(self._client)

    def _publish(self) -> None:
        self._control = str(json.loads(self._announcement.read_text())["control"])
        self._meeting.publish(self._job, self._control)
        _LOG.info("%s listens on %s", self._job, self._control)

    def _find_partner(self, control: str) -> None:
        self._partner = self._meeting.partner()
        if self._partner is not None:
            _LOG.info("%s met %s", self._job, self._partner.job)
            self._open = self._connect is None
            self._client = self._connect(self._partner, control) if self._connect else None
        elif time.monotonic() > self._partner_by:
            waited = (
                f"no sign of {JOB[PARTNER[self._side]]} in {self._meeting.folder} for {self._timeouts.partner_s:.0f} s"
            )
            self._end(Outcome(code=ExitCode.PEER, reason=f"{self._job} gave up: {waited}"))

    def _watch_client(self, client: Child) -> None:
        if client.code is not None:
            self._open = client.code == 0
            if not self._open:
                reason = f"{self._job}: the tunnel could not be opened: {client.explanation}"
                self._end(Outcome(code=ExitCode.PEER, reason=reason))

    def _end(self, verdict: Outcome, *, at_once: bool = False) -> None:
        """Ask the job to end, once; `verdict` counts unless the job still ends in order."""
        if self._verdict is not None and not at_once:
            return
        self._verdict = self._verdict or verdict
        _LOG.warning("%s", verdict.reason)
        orderly = self._side == "recon" and self._open and not at_once
        self._child.signal(signal.SIGUSR1 if orderly else signal.SIGTERM)
        self._end_by = time.monotonic() + (self._timeouts.finish_s if orderly else KILL_AFTER_S)

    def _conclude(self, code: int) -> None:
        """The job has ended: say how, once it is clear who failed first."""
        if code == ExitCode.PEER and self._verdict is None:
            self._account_by = self._account_by or time.monotonic() + ACCOUNT_S
            if time.monotonic() < self._account_by:
                return
        self._child.end(0.0)  # and whatever it left behind
        self.outcome = self._judge(code)
        self._meeting.finish(self.outcome)
        if self.outcome is not self._verdict:
            _LOG.log(logging.WARNING if self.outcome.failed else logging.INFO, "%s", self.outcome.reason)

    def _judge(self, code: int) -> Outcome:
        said = f": {self._child.explanation}" if self._child.explanation else ""
        if code == ExitCode.INCOMPLETE:
            return self._finished(code, f"{self._job} is incomplete{said}")
        if code == ExitCode.COMPLETE:
            return self._finished(code, f"{self._job} is complete")
        if self._verdict is not None:
            return self._verdict
        known = ExitCode(code) if code in tuple(ExitCode) else ExitCode.PEER
        return Outcome(code=known, reason=f"{self._job} failed with exit code {code}{said}")

    def _finished(self, code: int, reason: str) -> Outcome:
        try:
            if self._after is not None:
                self._after()
        except MinistreamError as error:
            return Outcome(code=error.exit_code, reason=str(error))
        return Outcome(code=code, reason=reason)
