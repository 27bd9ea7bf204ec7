"""Start the two jobs of a pair, or one of them, bring them together, and see them to one outcome."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Self

from ministream import config, log, partition
from ministream.app.launch.plan import PROGRAM, Plan, command
from ministream.app.launch.processes import Child
from ministream.app.launch.rendezvous import Appointment, Card, JobSide, Meeting, Outcome, Rendezvous, check_fingerprint
from ministream.app.launch.stage_out import StageOut
from ministream.app.launch.supervisor import JOB, Supervisor
from ministream.app.placement import granted
from ministream.errors import ConfigError
from ministream.source import describe
from ministream.transport import open_wire

_LOG = log.get(__name__)

STEP_S = 0.1


def launch(plan: Plan) -> Outcome:
    """Run the plan to its end, and leave no process behind.

    At the first USR1, TERM, HUP or INT the reconstruction finishes its window and writes, and the pair ends; at
    the second everything ends at once. Raises ConfigError, AccessError, StorageError or MachineError for what
    cannot be started, InputError for a source that cannot be read.
    """
    sides: tuple[JobSide, ...] = (plan.side,) if plan.side else ("producer", "recon")
    if plan.port and len(sides) > 1:
        raise ConfigError(f"--port {plan.port} is for one side alone: give --as too, or leave the ports free")
    _check_ranks(plan)
    with ExitStack() as stack:
        asked = stack.enter_context(_Asked())
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ministream-")))
        supervisors = [stack.enter_context(_start(plan, side, private, stack)) for side in sides]
        seen = 0
        while any(supervisor.outcome is None for supervisor in supervisors):
            if asked.times > seen:
                seen = asked.times
                for supervisor in reversed(supervisors):
                    supervisor.stop(asked.by, at_once=seen > 1)
            for supervisor in supervisors:
                supervisor.step()
            time.sleep(STEP_S)
        outcome = supervisors[-1].outcome
        assert outcome is not None
        return outcome


def _check_ranks(plan: Plan) -> None:
    """Find out before anything starts what the ranks would find out once they have met the producer.

    Raises ConfigError for more ranks than the scan has rows, or more that receive than there are. One side alone is
    left to its job, which tells the partner too; a scan that options of the producer's change is not known here, nor
    is a live one.
    """
    ranks = plan.ranks or (granted().ranks if not plan.launcher else 0)
    if plan.side is not None or not ranks:
        return
    partition.groups(ranks, plan.ingress)
    if not plan.producer_options:
        settings = config.load(plan.run)
        passes = open_wire(settings.producer.wire, settings).source_passes
        scan = describe(settings.source, order=settings.producer.order, repeat=passes)
        if scan is not None:
            partition.slabs(scan.rows, ranks)


class _Asked:
    """Counts the signals that ask this process to end, instead of dying of them; what `nohup` ignores stays so."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.times = 0
        self.by = ""

    def __enter__(self) -> Self:
        heeded = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.times += 1
        self.by = signal.Signals(number).name


def _start(plan: Plan, side: JobSide, private: Path, stack: ExitStack) -> Supervisor:
    meeting = _meeting(plan, side, private)
    credentials = meeting.credentials(plan.host_of(side))
    announcement = meeting.folder / f".{side}.listens"
    announcement.unlink(missing_ok=True)
    copy = stack.enter_context(StageOut(plan.scratch, plan.out)) if plan.scratch and side == "recon" else None

    def connect(partner: Card, control: str) -> Child:
        if partner.fingerprint is not None:
            check_fingerprint(partner, credentials)
        session = ("--prod", partner.control, "--cons", control, "--num-conn", str(plan.ingress))
        return Child("the tunnel's client", (*PROGRAM, "connect", *session, "--credentials", str(credentials)))

    job = JOB[side] + _where()
    start = command(plan, side, credentials, announcement, meeting.curve() if plan.curve else None)
    _LOG.debug("%s: %s", job, shlex.join(start.words))
    return Supervisor(
        side,
        Child(job, start.words, start.env),
        meeting,
        job=job,
        announcement=announcement,
        timeouts=plan.timeouts,
        connect=connect if side == "recon" else None,
        after=copy.finish if copy else None,
    )


def _meeting(plan: Plan, side: JobSide, private: Path) -> Meeting:
    folder = plan.rendezvous or private / "pair"
    if plan.side is None or (plan.rendezvous is not None and plan.producer is None):
        return Rendezvous(folder, side)
    if plan.credentials is None:
        raise ConfigError("one job alone needs a --rendezvous folder, or --credentials that the other side knows")
    if side == "recon" and plan.producer is None:
        raise ConfigError("where is the producer? give a --rendezvous folder, or --producer HOST:PORT")
    return Appointment(folder, side, plan.credentials, plan.producer)


def _where() -> str:
    """How Slurm knows this job, for messages that are read at the other side."""
    job = os.environ.get("SLURM_JOB_ID")
    return f" (Slurm job {job} on {os.uname().nodename})" if job else ""
