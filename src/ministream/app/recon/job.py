"""The reconstruction job: what every rank does from the first frame to the written volume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ministream import log
from ministream.app import placement
from ministream.app.announce import announce
from ministream.app.metrics import open_endpoint, tunnel_readings
from ministream.app.open_network import check_open
from ministream.app.recon import resume
from ministream.app.recon.assignment import Assignment, assign, groups_of
from ministream.app.recon.hang_watch import HangWatch, WatchedRank
from ministream.app.recon.ingress import Ingress
from ministream.app.recon.observing import Observers, Run
from ministream.app.recon.outcome import RunOutcome
from ministream.app.recon.parts import Parts
from ministream.app.recon.producer_link import ProducerLink
from ministream.app.recon.reference import ReferenceComparison
from ministream.app.stop_signals import STOP_SIGNALS
from ministream.config import Config
from ministream.errors import ExitCode, IncompleteError, MinistreamError, PeerError, PeerLostError
from ministream.ledger import Ledger
from ministream.model import FrameKind, Scan
from ministream.monitor import StageClock, Summary
from ministream.parallel import mpi
from ministream.parallel.row_scatter import RowScatter, SlabFrame
from ministream.recon import backend
from ministream.storage import Checkpoint, VolumeWriter
from ministream.wire.native import Share

if TYPE_CHECKING:  # needs prometheus-client
    from ministream.monitor.endpoint import MetricsEndpoint

_LOG = log.get(__name__)


def recon(
    load_config: Callable[[], Config],
    *,
    ranks: int | None,
    announce_to: Path | None,
    log_level: str | None,
    log_format: str | None = None,
    console: Console,
) -> Summary | None:
    """Reconstruct one scan; collective over all ranks. Returns the summary on rank 0, None elsewhere.

    `load_config` is called on every rank. Progress goes to `console`, on rank 0.

    Raises a MinistreamError on rank 0 if all ranks failed together; a rank that fails alone
    aborts the job.
    """
    comm = mpi.world(ranks)
    with mpi.ending_together(comm), ExitStack() as stack:
        on_signals(_stop_before_the_scan if comm.rank == 0 else signal.SIG_IGN)
        config, threads = prepare(comm, load_config, stack, log_level=log_level, log_format=log_format)
        return one_scan(comm, config, threads, announce_to=announce_to, console=console)


def prepare(
    comm: mpi.Comm,
    load_config: Callable[[], Config],
    stack: ExitStack,
    *,
    log_level: str | None,
    log_format: str | None,
) -> tuple[Config, int]:
    """What a job does once, before its first scan; collective. Returns the configuration and the threads of this rank.

    The processes that watch the ranks end with `stack`. Raises ConfigError on every rank.
    """
    log.setup(f"rank {comm.rank}", log_level or "INFO", log_format or "text", rank=comm.rank)
    with comm.together():
        config = load_config()
        if comm.rank == 0:
            check_open((config.output.publish,), allowed=config.output.open_network, instead="Publish on 127.0.0.1")
    log.setup(f"rank {comm.rank}", log_level or config.log_level, log_format or config.log_format, rank=comm.rank)
    stack.enter_context(HangWatch(_ranks_here(comm), config.recon.hang_timeout_s))
    threads = config.recon.threads or mpi.fair_threads(comm)
    backend.default().set_threads(threads)
    places = comm.gather(placement.here(threads))
    if places is not None:
        _LOG.info("%s", placement.describe(places))
    return config, threads


def one_scan(
    comm: mpi.Comm,
    config: Config,
    threads: int,
    *,
    announce_to: Path | None,
    console: Console,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    heed: Callable[[Ingress], None] = lambda _: None,
) -> Summary | None:
    """Receive one scan and reconstruct it; collective. Returns the summary on rank 0, None elsewhere.

    The job waits for the producer within the context `waiting`; `heed` is called on the receiving ranks once the scan
    is known, after which a signal ends its stream in order. Raises a MinistreamError on every rank.
    """
    with ExitStack() as stack:
        with comm.together():
            group = next(group for group in groups_of(config, comm.size) if comm.rank in group)
            link = stack.enter_context(ProducerLink(config, announce_to)) if comm.rank == 0 else None
            metrics = _metrics(config, link, stack) if link is not None else None
        checkpoint = resume.found(comm, config)
        receiving = comm.split(0 if comm.rank == group.start else None)
        before = checkpoint.values if checkpoint is not None else None
        ingress = stack.enter_context(Ingress(receiving, config, link, before)) if receiving is not None else None
        with comm.together(), waiting():
            route = link.open() if link is not None else None
        with comm.together(), waiting():
            share = Share(first=group.start, last=group.stop, ranks=comm.size)
            offered = ingress.wait_for_scan(route, share) if ingress is not None else None
        if ingress is not None:
            heed(ingress)
        scan = cast(Scan, comm.bcast(offered))
        with comm.together():
            if checkpoint is not None:
                resume.check(checkpoint, scan)
                config = resume.settled(config, checkpoint)
            assignment = assign(comm.rank, comm.size, config, scan, threads)
            job = Job(comm, assignment, ingress, console, stack, checkpoint, metrics)
        if ingress is not None:
            ingress.begin(batch=assignment.batch, step=job.step, shape=(assignment.band[-1].stop, scan.cols))
        summary = job.run()
        if summary is not None:
            # mpirun and srun may end with a code of their own, for example after a signal that came too late
            announce(announce_to, exit_code=ExitCode.COMPLETE if summary.complete else ExitCode.INCOMPLETE)
        return summary


def _metrics(config: Config, link: ProducerLink, stack: ExitStack) -> MetricsEndpoint | None:
    """Rank 0's endpoint, which tells of the tunnel from now on."""
    if config.output.metrics is None:
        return None
    endpoint = open_endpoint(config.output.metrics, open_network=config.output.open_network)
    if (server := link.server) is not None:
        endpoint.add(lambda: tunnel_readings(server))
    return stack.enter_context(endpoint)


def _ranks_here(comm: mpi.Comm) -> list[WatchedRank]:
    """The ranks of this node, on the first of them; collective."""
    node = comm.node()
    found = node.allgather(WatchedRank(pid=os.getpid(), rank=comm.rank, ranks=comm.size))
    node.free()
    return found if node.rank == 0 else []


def on_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> None:
    """Install a signal handler; the receiving ranks decide to end the job early, the other ranks follow."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


def _stop_before_the_scan(number: int, _frame: object) -> None:
    on_signals(signal.SIG_IGN)  # mpirun may forward a signal that the ranks also receive directly
    raise IncompleteError(f"stopped by {signal.Signals(number).name} before the scan began: no volume was written")


class _Shared:
    """Work shared between all ranks; the time spent waiting for other ranks counts as idle."""

    def __init__(self, comm: mpi.Comm, clock: StageClock) -> None:
        self.part = comm.part
        self._comm, self._clock = comm, clock

    def whole(self, mine: NDArray[np.float32], count: int) -> Callable[[], NDArray[np.float32]]:
        gathered = self._comm.whole(mine, count)

        def wait() -> NDArray[np.float32]:
            with self._clock.timed("idle"):
                return gathered()

        return wait


class Job:
    """One rank's part of one scan, from the first frame to the volume."""

    def __init__(
        self,
        comm: mpi.Comm,
        assignment: Assignment,
        ingress: Ingress | None,
        console: Console,
        stack: ExitStack,
        checkpoint: Checkpoint | None,
        metrics: MetricsEndpoint | None,
    ) -> None:
        self._comm, self._ingress, self._clock = comm, ingress, StageClock()
        # frames are counted on the receiving ranks, and rank 0 reports the counts
        telling = ingress if comm.rank == 0 else None
        ledger = telling.ledger if telling is not None else Ledger()
        self._parts = Parts(comm, assignment, _Shared(comm, self._clock), ledger)
        if ingress is not None:
            self._parts.steering.stepped = ingress.change_step
        if checkpoint is not None:
            resume.restore(checkpoint, comm, assignment, self._parts)
        self._window, self._books, self._gate = self._parts.window, self._parts.books, self._parts.gate
        if ingress is not None and metrics is not None:
            self._books.measure()
            ingress.arrivals = self._books.arrival_latency
            metrics.add(ingress.readings)
        self._metrics = metrics
        self._idle_s = 0.0
        self._group = cast(mpi.Comm, comm.split(assignment.group.start))
        feed = ingress.feed if ingress else None
        self._scatter = RowScatter(self._group, assignment.scan, assignment.band, assignment.batch, feed)
        run = self._run_of(assignment, console)
        stack.callback(run.writer.close)
        self._observers = Observers(run, self._clock)
        stack.callback(self._observers.close)
        self._outcome = RunOutcome(run, self._books, self._observers, self._clock, telling, self._gate)

    def _run_of(self, assignment: Assignment, console: Console) -> Run:
        """The interface for the observers; collective."""
        writer = VolumeWriter(
            self._comm.dup(),
            assignment.config.output.directory,
            scan=assignment.scan,
            n=assignment.n,
            slab=assignment.slab,
            axis_col=assignment.axis_col,
            config=assignment.config.as_dict(),
            how=assignment.config.output.writer,
        )
        ingress, about = self._ingress, resume.header(assignment)
        return Run(
            comm=self._comm,
            assignment=assignment,
            clock=self._clock,
            parts=self._parts,
            notices=lambda: self._gate.book.notices,
            writer=writer,
            comparison=ReferenceComparison(self._comm, assignment),
            console=console,
            state=lambda: {**about, **self._parts.state(), **(ingress.state() if ingress is not None else {})},
            position=lambda: ingress.position if ingress is not None else -1,
            saved=ingress.save if ingress is not None else lambda _position: None,
            finish=ingress.finish if ingress is not None else lambda _why: None,
            shown_at=lambda: self._shown_at(assignment.scan.projections),
            dropped=ingress.dropped if ingress is not None else dict,
            metrics=self._metrics,
        )

    def _shown_at(self, expected: int) -> float:
        """The middle of the window as a share of the scan; 1 where its length is unknown."""
        held = self._window.indices
        return float(np.mean(held)) / expected if held and expected else 1.0

    @property
    def step(self) -> int:
        """New projections per update."""
        return self._window.step

    def run(self) -> Summary | None:
        """Process batches until the stream ends; update the image whenever the window is due."""
        self._gate.started()
        self._observers.started()
        while (batch := self._take()) is not None:
            with self._clock.timed("prep"):
                for rows in batch:
                    self._accept(rows)
            if self._ingress is not None:
                self._ingress.acknowledge()
            if self._window.due and self._axis_is_known():
                self._update()
        if self._ingress is not None:
            self._ingress.conclude()
        self._scatter.close()
        self._group.free()
        self._comm.agree(self._failure())
        if self._comm.bcast(self._ingress is not None and self._ingress.announced is None):
            with self._clock.timed("idle"):
                self._books.agree(self._comm)
                self._gate.agree()
            self._observers.interrupted()
        if self._window.fresh:
            self._parts.axis.conclude()
            self._update()
        self._parts.steering.apply(self._books.updates)
        ingress, axis = self._ingress, self._parts.axis
        left_out = (ingress.unwritten, ingress.lost) if ingress is not None else ((), ())
        lacking = self._parts.sinograms.notices(self._window)
        found = [*axis.notices(), *self._parts.given_axis.notices(axis.col), *lacking]
        self._gate.conclude(*left_out, axis_col=axis.col, found=found)
        summary = self._outcome.write(self._parts.image.host(), scattered=self._scatter.bytes_scattered)
        if self._ingress is not None and summary is not None:
            self._ingress.report(complete=summary.complete, missing=summary.missing)
        return summary

    def _take(self) -> list[SlabFrame] | None:
        began = time.perf_counter()
        with self._clock.timed("receive"):
            batch = self._scatter.take(self._observers.poll)
            self._clock.add("idle", self._scatter.waits.idle_s)
            self._clock.add("scatter", self._scatter.waits.scatter_s)
        self._idle_s += time.perf_counter() - began
        return batch

    def _accept(self, rows: SlabFrame) -> None:
        if rows.kind is not FrameKind.PROJECTION:
            self._parts.corrector.add(rows.kind, rows.pixels, rows.position)
            return
        if not self._parts.corrector.settled:
            self._gate.settle()
        before = self._window.fresh
        slot = self._window.slot(rows.index, rows.angle_rad)
        mended = self._parts.corrector.correct(rows.pixels, slot, rows.position)
        self._parts.axis.accepted(rows, slot)
        self._parts.given_axis.accepted(rows, slot)
        self._gate.accepted(rows, mended)
        self._books.accepted(rows, new=self._window.fresh > before, repaired=mended.total)

    def _axis_is_known(self) -> bool:
        with self._clock.timed("axis"):
            return self._parts.axis.ready()

    def _update(self) -> None:
        self._gate.updated()
        with self._clock.timed("prep"):
            sinograms = self._parts.sinograms.of(self._window, self._move_frames)
        with self._clock.timed("update"):
            report = self._parts.algorithm.update(
                self._parts.image.handle,
                sinograms,
                self._parts.pacing.iterations(),
                progress=self._move_frames,
                proceed=self._parts.pacing.proceed,
            )
            self._clock.add("forward", report.forward_s)
            self._clock.add("back", report.back_s)
        missed = self._window.missed
        new = self._window.fresh - missed
        self._parts.axis.missed += missed
        self._window.updated()
        with self._clock.timed("idle"):  # synchronises the ranks
            residuals = self._parts.pacing.learn(
                report,
                acquired_s=self._books.not_yet_in_image,
                idle_s=self._idle_s,
                waiting=self._ingress.waiting if self._ingress is not None else 0,
            )
            self._books.agree(self._comm)
        self._idle_s = 0.0
        image = self._parts.image.host()
        snapshot = self._parts.steering.apply(self._books.updates + 1)
        self._observers.updated(
            self._books.updated(image, residuals, report.iterations, new=new, missed=missed, snapshot=snapshot)
        )

    def _failure(self) -> MinistreamError | None:
        """The reason, on rank 0, why there is no volume to write."""
        if self._ingress is None or self._ingress.failure is not None or self._window.held:
            return self._ingress.failure if self._ingress is not None else None
        ledger = self._ingress.ledger
        if ledger.received:
            reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.refusals.get("projection", {}).items())
            return PeerError(f"none of the {ledger.received} projections that arrived can be used: {reasons} refused")
        return PeerLostError(f"no projection arrived: {self._ingress.ending}")

    def _move_frames(self) -> None:
        self._scatter.poll()
        self._observers.poll()
