"""Start the two jobs of a pair, or one of them, connect them, and supervise them to one outcome."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Self

from ministream import atomic, config, log, partition, private
from ministream.app.launch.plan import PROGRAM, Plan, command
from ministream.app.launch.processes import Child
from ministream.app.launch.rendezvous import (
    Contact,
    JobSide,
    KnownAddresses,
    Outcome,
    Rendezvous,
    SharedFolder,
    check_fingerprint,
)
from ministream.app.launch.stage_out import StageOut
from ministream.app.launch.supervisor import JOB, Actions, Supervisor
from ministream.app.launch.watcher import Watcher
from ministream.app.placement import granted
from ministream.errors import ConfigError
from ministream.source import describe
from ministream.storage.checkpoint import checkpoints
from ministream.transport import open_wire

_LOG = log.get(__name__)

STEP_S = 0.1


def launch(plan: Plan, settings: config.Config | None = None) -> Outcome:
    """Run the plan to its end, and leave no process, secret or temporary folder, even if this process is killed.

    At the first USR1, TERM, HUP or INT the reconstruction completes its window and writes, and the pair ends; at
    the second everything ends immediately. `settings` are those of the run file, None where they are invalid, which
    the jobs report. Raises ConfigError, AccessError, StorageError or MachineError for jobs that
    cannot be started, InputError for a source that cannot be read.
    """
    sides: tuple[JobSide, ...] = (plan.side,) if plan.side else ("producer", "recon")
    if plan.port and len(sides) > 1:
        raise ConfigError(f"--port {plan.port} is for one side alone: add --as producer or --as recon, or omit --port")
    if plan.side is None:
        check_ranks(plan, settings)
    with ExitStack() as stack:
        stops = stack.enter_context(_StopSignals())
        folder = private.make_temporary("ministream-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        watcher = stack.enter_context(Watcher(folder))
        if plan.view:
            stack.enter_context(_page(plan, watcher))
        supervisors = [stack.enter_context(_start(plan, side, folder, watcher, stack)) for side in sides]
        return _supervise(supervisors, stops)


def _page(plan: Plan, watcher: Watcher) -> Child:
    """The web page of the live view. Raises ConfigError where the ranks run elsewhere, StorageError."""
    if plan.side == "producer" or plan.launcher:
        raise ConfigError(
            "--view shows a reconstruction on this machine: leave it out here. On the node of rank 0 run `ministream "
            "recon --live tcp://127.0.0.1:0` and `ministream view` with the output folder."
        )
    try:
        plan.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.failed(plan.results, error) from error
    return Child("the web page", (*PROGRAM, "view", str(plan.results)), watcher.environment)


def _supervise(supervisors: list[Supervisor], stops: _StopSignals) -> Outcome:
    """Step all supervisors until each has an outcome; the last one's is the pair's."""
    seen = 0
    while any(supervisor.outcome is None for supervisor in supervisors):
        if stops.count > seen:
            seen = stops.count
            for supervisor in reversed(supervisors):
                supervisor.stop(stops.last, at_once=seen > 1)
        for supervisor in supervisors:
            supervisor.step()
        time.sleep(STEP_S)
    outcome = supervisors[-1].outcome
    assert outcome is not None
    return outcome


def check_ranks(plan: Plan, settings: config.Config | None) -> None:
    """Check before the start what the ranks would otherwise detect only after connecting to the producer.

    Raises ConfigError for more ranks than the scan has rows, or more that receive than there are; InputError for a
    source that cannot be read. A scan changed by the producer's options is not known here, nor is a live one. One side
    alone is left to its job, which also informs the partner.
    """
    ranks = plan.ranks or (granted().ranks if not plan.launcher else 0)
    if not ranks:
        return
    partition.groups(ranks, plan.ingress)
    if settings is None or plan.producer_options:
        return
    passes = open_wire(settings.producer.wire, settings).source_passes
    scan = describe(settings.source, order=settings.producer.order, repeat=passes)
    if scan is not None:
        partition.slabs(scan.rows, ranks)


class _StopSignals:
    """Counts the signals that ask this process to end, instead of ending; signals ignored under `nohup` stay so."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.count = 0
        self.last = ""

    def __enter__(self) -> Self:
        heeded = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.last = signal.Signals(number).name


def _start(plan: Plan, side: JobSide, folder: Path, watcher: Watcher, stack: ExitStack) -> Supervisor:
    rendezvous = _rendezvous(plan, side, folder)
    watcher.answer_for(rendezvous.folder, side)
    advertise = plan.advertise if side == "producer" else None
    credentials = rendezvous.credentials(plan.host_of(side), *filter(None, [advertise]))
    keys = rendezvous.curve() if plan.curve else None
    announcement = rendezvous.folder / f".{side}.listens"
    stage_out = stack.enter_context(StageOut(plan.scratch, plan.out)) if plan.scratch and side == "recon" else None
    job = JOB[side] + _where()
    temporary = folder / side
    temporary.mkdir()

    def start(again: bool) -> Child:
        resume = _checkpoint(plan) if side == "recon" and (again or _requeued()) else None
        words, env = command(plan, side, credentials, announcement, temporary, curve=keys, resume=resume)
        _LOG.debug("%s: %s", job, shlex.join(words))
        return Child(job, words, env | watcher.environment)

    def connect(partner: Contact, control: str) -> Child:
        if partner.fingerprint is not None:
            check_fingerprint(partner, credentials)
        session = ("--prod", partner.control, "--cons", control, "--num-conn", str(plan.ingress * plan.streams))
        words = (*PROGRAM, "connect", *session, "--credentials", str(credentials), "--log-format", plan.log_format)
        return Child("the tunnel's client", words, watcher.environment)

    return Supervisor(
        side,
        rendezvous,
        Actions(
            start=start,
            connect=connect if side == "recon" else None,
            after=stage_out.finish if stage_out else None,
        ),
        job=job,
        announcement=announcement,
        timeouts=plan.timeouts,
        restarts=plan.restarts if side == "recon" else 0,
        advertise=advertise,
    )


def _checkpoint(plan: Plan) -> Path | None:
    """The folder of checkpoints to continue from; None where there is none, and the scan starts again."""
    folder = plan.checkpoints or plan.results / "checkpoint"
    found = checkpoints(folder)
    _LOG.info("continuing from %s" if found else "no checkpoint in %s: starting again", folder)
    return folder if found else None


def _requeued() -> bool:
    """Whether Slurm requeued this job, after a node failure or preemption."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _rendezvous(plan: Plan, side: JobSide, own: Path) -> Rendezvous:
    folder = plan.rendezvous or own / "pair"
    if plan.side is None or (plan.rendezvous is not None and plan.producer is None):
        return SharedFolder(folder, side)
    if plan.credentials is None:
        raise ConfigError(
            "one job alone needs --rendezvous DIR, or --credentials DIR of the authority that the other side uses"
        )
    if side == "recon" and plan.producer is None:
        raise ConfigError("the producer's address is missing. Give --rendezvous DIR, or --producer HOST:PORT")
    return KnownAddresses(folder, side, plan.credentials, plan.producer)


def _where() -> str:
    """This job's Slurm id and node, for messages that appear on the other side."""
    job = os.environ.get("SLURM_JOB_ID")
    return f" (Slurm job {job} on {os.uname().nodename})" if job else ""
