"""Supervises one job of a pair: its process, its partner's outcome, restarts after a crash, and stop requests."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ministream import log
from ministream.app.launch.processes import KILL_AFTER_S, Child
from ministream.app.launch.rendezvous import PARTNER, Contact, JobSide, Outcome, Rendezvous
from ministream.app.stop_signals import SAME_SIGNAL_S
from ministream.errors import ExitCode, MinistreamError
from ministream.tunnel.address import Endpoint, parse_endpoint

_LOG = log.get(__name__)

JOB: dict[JobSide, str] = {"producer": "the producer job", "recon": "the reconstruction job"}

# The folder may be on a shared file system: a few polls per second do not burden it.
POLL_S = 0.2

# The stream breaks before the failing peer's outcome reaches the rendezvous; mpirun takes seconds to end.
PARTNER_OUTCOME_S = 10.0

# Neither a crash nor a failed peer: the job's own decision.
_IN_ORDER = (ExitCode.COMPLETE, ExitCode.USAGE, ExitCode.INCOMPLETE, ExitCode.STORAGE)

# A job whose partner has finished gets this long to finish too.
LINGER_S = 20.0

# A producer whose partner failed has nobody to send to: its second signal, which ends it at once, follows the first.
SECOND_SIGNAL_S = 1.5 * SAME_SIGNAL_S


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Timeouts in seconds: for the partner to appear, and for completing the window and writing."""

    partner_s: float = 900.0
    finish_s: float = 90.0


@dataclass(frozen=True, kw_only=True)
class Actions:
    """A supervisor's callbacks for its job.

    `start` starts the job; True: again, after a crash. `connect`, for the side that opens the tunnel's session, starts
    the client from the two control addresses. `after` runs once the job has ended in order, and may still fail it.
    """

    start: Callable[[bool], Child]
    connect: Callable[[Contact, str], Child] | None = None
    after: Callable[[], None] | None = None


class Supervisor:
    """Follows one job from start to outcome without blocking: call `step` until there is an `outcome`.

    A reconstruction that ended in order (0 complete, 3 incomplete) decides by its own exit code. One that crashed is
    restarted up to `restarts` times. Otherwise the side that failed first gives its code and reason to both.
    """

    def __init__(
        self,
        side: JobSide,
        rendezvous: Rendezvous,
        actions: Actions,
        *,
        job: str,
        announcement: Path,
        timeouts: Timeouts,
        restarts: int = 0,
        advertise: str | None = None,
    ) -> None:
        self.outcome: Outcome | None = None
        self._side, self._rendezvous, self._actions = side, rendezvous, actions
        self._job, self._announcement, self._timeouts = job, announcement, timeouts
        self._restarts, self._restarted = restarts, 0
        self._advertise = advertise
        self._decided: Outcome | None = None
        self._partner_failed = False
        self._poll_at = 0.0
        self._start()

    def _start(self) -> None:
        """Start the job, the first time or again."""
        self._announcement.unlink(missing_ok=True)
        self._control: str | None = None
        self._partner: Contact | None = None
        self._client: Child | None = None
        self._open = False
        self._end_by: float | None = None
        self._partner_outcome_by: float | None = None
        self._partner_by = time.monotonic() + self._timeouts.partner_s
        self._child = self._actions.start(self._restarted > 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in filter(None, (self._client, self._child)):
            child.end(KILL_AFTER_S)
        if self.outcome is None:
            self._rendezvous.finish(Outcome(code=ExitCode.PEER, reason=f"{self._job}: the launcher failed"))

    def step(self) -> None:
        """Check job, partner and client once, and react."""
        if self.outcome is not None:
            return
        try:
            self._step()
        except MinistreamError as error:
            self._end(Outcome(code=error.exit_code, reason=str(error)))

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """End the job; a reconstruction that has begun completes its window and writes, unless `at_once`."""
        if self.outcome is None:
            reason = f"{self._job} was stopped by {why}"
            self._end(Outcome(code=ExitCode.INCOMPLETE, reason=reason), at_once=at_once)

    def _step(self) -> None:
        code, now = self._child.code, time.monotonic()
        if now >= self._poll_at:
            self._poll_at = now + POLL_S
            self._poll()
        if code is not None:
            self._conclude(self._told_code(code))
        elif self._end_by is not None and now > self._end_by:
            self._child.end(KILL_AFTER_S)

    def _poll(self) -> None:
        ended = self._rendezvous.partner_outcome()
        if ended is not None and self._side == "producer" and self._decided is not None and self._end_by is not None:
            self._end_by = min(self._end_by, time.monotonic() + KILL_AFTER_S)
        # a producer that dropped projections, or was stopped, has still sent the rest to the end
        sent_all = self._side == "recon" and self._open and ended is not None and ended.code == ExitCode.INCOMPLETE
        if ended is not None and ended.failed and not sent_all:
            self._partner_failed = True
            self._end(Outcome(code=ended.code, reason=f"{JOB[PARTNER[self._side]]} ended first: {ended.reason}"))
        elif ended is not None and self._side == "producer" and self._end_by is None:
            self._end_by = time.monotonic() + LINGER_S
        elif self._control is None and "control" in self._told():
            self._publish()
        elif self._control is not None and self._partner is None:
            self._find_partner(self._control)
        elif self._client is not None and not self._open:
            self._watch_client(self._client)

    def _told(self) -> dict[str, Any]:
        """What the job has told so far: its control address, then the exit code of its last decision."""
        return dict(json.loads(self._announcement.read_text())) if self._announcement.exists() else {}

    def _told_code(self, code: int) -> int:
        """The exit code that the job itself told. That of mpirun or srun is another one if a signal came too late."""
        return int(self._told().get("exit_code", code))

    def _publish(self) -> None:
        self._control = str(self._told()["control"])
        self._rendezvous.publish(self._job, self._advertised(self._control))
        _LOG.info("%s listens on %s", self._job, self._control)

    def _advertised(self, control: str) -> str:
        """The address under which the partner reaches the control server."""
        host, port = self._advertise, parse_endpoint(control).port
        return str(Endpoint(host, port)) if host else control

    def _find_partner(self, control: str) -> None:
        self._partner = self._rendezvous.partner()
        if self._partner is not None:
            _LOG.info("%s found %s", self._job, self._partner.job)
            connect = self._actions.connect
            self._open = connect is None
            self._client = connect(self._partner, control) if connect else None
        elif time.monotonic() > self._partner_by:
            waited = f"timed out after {self._timeouts.partner_s:g} s waiting for {JOB[PARTNER[self._side]]}"
            self._end(Outcome(code=ExitCode.PEER, reason=f"{self._job}: {waited} in {self._rendezvous.folder}"))

    def _watch_client(self, client: Child) -> None:
        if client.code is not None:
            self._open = client.code == 0
            if not self._open:
                reason = f"{self._job}: cannot open the tunnel: {client.explanation}"
                self._end(Outcome(code=ExitCode.PEER, reason=reason))

    def _end(self, decided: Outcome, *, at_once: bool = False) -> None:
        """Ask the job to end, once; `decided` counts unless the job still ends in order."""
        if self._decided is not None and not at_once:
            return
        self._decided = self._decided or decided
        _LOG.warning("%s", decided.reason)
        if self._side == "producer":
            limit_s = SECOND_SIGNAL_S if at_once or self._partner_failed else self._timeouts.finish_s
            self._child.signal(signal.SIGTERM)
        else:
            orderly = self._open and not at_once
            limit_s = self._timeouts.finish_s if orderly else KILL_AFTER_S
            self._child.signal(signal.SIGUSR1 if orderly else signal.SIGTERM)
        self._end_by = time.monotonic() + limit_s

    def _conclude(self, code: int) -> None:
        """The job has ended: restart it after a crash, else set the outcome once the first failure is known."""
        if code not in _IN_ORDER and self._decided is None:
            self._partner_outcome_by = self._partner_outcome_by or time.monotonic() + PARTNER_OUTCOME_S
            if self._may_restart() or (code == ExitCode.PEER and time.monotonic() < self._partner_outcome_by):
                return
        self._child.end(0.0)  # and the processes that it left
        self.outcome = self._outcome_of(code)
        self._rendezvous.finish(self.outcome)
        if self.outcome is not self._decided:
            _LOG.log(logging.WARNING if self.outcome.failed else logging.INFO, "%s", self.outcome.reason)

    def _may_restart(self) -> bool:
        """Restart a crashed job while restarts are left; its partner waits meanwhile."""
        if self._restarted >= self._restarts or not self._child.crashed:
            return False
        self._restarted += 1
        cause = self._child.explanation
        for child in filter(None, (self._client, self._child)):
            child.end(0.0)
        _LOG.warning("%s crashed (%s): restart %d of %d", self._job, cause, self._restarted, self._restarts)
        self._start()
        return True

    def _outcome_of(self, code: int) -> Outcome:
        said = f": {self._child.explanation}" if self._child.explanation else ""
        decided = self._decided
        failed = decided is not None and (self._partner_failed or decided.code != ExitCode.INCOMPLETE)
        if decided is not None and failed and self._side == "producer" and code == ExitCode.INCOMPLETE:
            return decided  # the producer was stopped because of this failure
        if code == ExitCode.INCOMPLETE:
            return self._finished(code, f"{self._job} is incomplete{said}")
        if code == ExitCode.COMPLETE:
            return self._finished(code, f"{self._job} is complete")
        if decided is not None:
            return decided
        known = ExitCode(code) if code in tuple(ExitCode) else ExitCode.PEER
        return Outcome(code=known, reason=f"{self._job} failed with exit code {code}{said}")

    def _finished(self, code: int, reason: str) -> Outcome:
        try:
            if self._actions.after is not None:
                self._actions.after()
        except MinistreamError as error:
            return Outcome(code=error.exit_code, reason=str(error))
        return Outcome(code=code, reason=reason)
