"""The standing reconstruction job: one scan after another, with the ranks up and the kernels loaded."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ministream import log
from ministream.app.recon.assignment import groups_of
from ministream.app.recon.ingress import Ingress
from ministream.app.recon.job import on_signals, one_scan, prepare
from ministream.config import Config
from ministream.errors import ConfigError, IncompleteError, MinistreamError, UsageError
from ministream.monitor import Summary
from ministream.parallel import mpi
from ministream.prep import kernels
from ministream.recon import backend

_LOG = log.get(__name__)

# One wait for the next producer; ZeroMQ takes no timeout of 25 days. After it the job waits again.
WAIT_S = 20 * 86400.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_POLL_S = 0.1

# A slab that uses the kernels of all slabs above 15 rows, and a detector's usual pixels.
_SLICES = 112
_PIXELS = "<u2"


@dataclass(kw_only=True)
class ServiceReport:
    """What became of the scans: complete, incomplete, or without a volume; and the signal that ended the service."""

    complete: int = 0
    incomplete: int = 0
    failed: int = 0
    stopped_by: str = ""

    @property
    def scans(self) -> int:
        """All scans that began."""
        return self.complete + self.incomplete + self.failed


class StopRequest:
    """The request of a signal to end the service: at once while it waits, after the current scan otherwise."""

    def __init__(self) -> None:
        self.by = ""
        self.waited = self.began = False
        self._waits = False

    def __call__(self, number: int, _frame: object) -> None:
        self.by = signal.Signals(number).name
        if self._waits:
            self._waits = False
            raise self._reason()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this block the request is raised as an IncompleteError."""
        if self.by:
            raise self._reason()
        self._waits = self.waited = True
        try:
            yield
        finally:
            self._waits = False

    def heed(self, ingress: Ingress) -> None:
        """From now on a signal also ends the stream of this scan in order."""
        self.began = True

        def both(number: int, frame: object) -> None:
            self.by = signal.Signals(number).name
            ingress.interrupt(number, frame)

        on_signals(both)
        if self.by:  # it came between the end of the wait and now
            ingress.interrupt(signal.Signals[self.by], None)

    def _reason(self) -> IncompleteError:
        return IncompleteError(f"stopped by {self.by} while waiting for a scan")


def serve(
    load_config: Callable[[], Config],
    *,
    ranks: int | None,
    scans: int,
    announce_to: Path | None,
    log_level: str | None,
    log_format: str | None,
    console: Console,
    tell: Callable[[Summary, Path], None],
) -> ServiceReport | None:
    """Reconstruct `scans` scans (0: until a signal), each in a numbered folder of its own; collective over all ranks.

    A scan that fails is logged, and the next one is waited for. `tell` is called on rank 0 after each one with its
    summary and folder. Returns the report on rank 0, None elsewhere.

    Raises ConfigError or InputError for settings with which no scan can begin.
    """
    comm = mpi.world(ranks)
    report, stop = ServiceReport(), StopRequest()
    with mpi.ending_together(comm), ExitStack() as stack:
        on_signals(stop)  # noted, until there is something to interrupt
        config, threads = prepare(comm, load_config, stack, log_level=log_level, log_format=log_format)
        with comm.together():
            _check(config)
            receives = any(comm.rank == group.start for group in groups_of(config, comm.size))
            _load_kernels()
        pause_s = _PAUSE_S
        while not scans or report.scans < scans:
            comm.barrier()  # rank 0 may rest, and the others must not spin
            stop.waited = stop.began = False
            on_signals(stop if receives else signal.SIG_IGN)
            folder = comm.bcast(_next_folder(config.output.directory) if comm.rank == 0 else Path())
            summary, error = _one(comm, config, folder, threads, announce_to, console, stop)
            began = comm.bcast(stop.began)
            if comm.rank == 0:
                _note(report, began=began, folder=folder, summary=summary, error=error)
                if not began and stop.waited and not stop.by:
                    _LOG.warning("%s", error)
                if summary is not None:
                    tell(summary, folder)
            report = comm.bcast(report)
            if any(comm.allgather(bool(stop.by))):
                report.stopped_by = comm.bcast(stop.by)
                break
            if began:
                pause_s = _PAUSE_S
            elif isinstance(error, UsageError) and not comm.bcast(stop.waited):
                raise error
            else:
                if comm.rank == 0:
                    _rest(pause_s, stop)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return report if comm.rank == 0 else None


def _one(
    comm: mpi.Comm,
    config: Config,
    folder: Path,
    threads: int,
    announce_to: Path | None,
    console: Console,
    stop: StopRequest,
) -> tuple[Summary | None, MinistreamError | None]:
    """One scan, whose memory and communicators are free afterwards. Returns the error that all ranks raised."""
    own, summary, failure = comm.dup(), None, None
    try:
        summary = one_scan(
            own,
            _settings(config, folder),
            threads,
            announce_to=announce_to,
            console=console,
            waiting=stop.waiting,
            heed=stop.heed,
        )
    except MinistreamError as error:
        if comm.size > 1 and not error.everywhere:
            raise
        failure = error.with_traceback(None)  # which would keep the scan's arrays
    own.free()
    gc.collect()
    return summary, failure


def _settings(config: Config, folder: Path) -> Config:
    output = config.output.model_copy(update={"directory": folder})
    stream = config.stream.model_copy(update={"connect_timeout_s": WAIT_S})
    return config.model_copy(update={"output": output, "stream": stream})


def _check(config: Config) -> None:
    if config.checkpoint.resume is not None:
        raise ConfigError("--resume continues one scan: leave it out of `serve`, and give it to `recon`")
    if config.checkpoint.directory is not None:
        raise ConfigError(
            "[checkpoint] directory is one folder for all scans of `serve`: leave it out, each scan's checkpoints are "
            "in its own folder"
        )


def _load_kernels() -> None:
    """Those of most scans."""
    backend.default().warm_up(_SLICES)
    kernels.warm_up(np.dtype(_PIXELS))


def _next_folder(base: Path) -> Path:
    """The first number that no folder has, counted on from those of earlier services."""
    taken = [int(path.name) for path in base.glob("[0-9]*") if path.name.isdecimal()]
    return base / f"{max(taken, default=0) + 1:04d}"


def _note(
    report: ServiceReport, *, began: bool, folder: Path, summary: Summary | None, error: MinistreamError | None
) -> None:
    """Count one scan, and log what became of it."""
    if summary is not None:
        report.complete += summary.complete
        report.incomplete += not summary.complete
        how = "complete" if summary.complete else f"incomplete: {summary.cause}"
        _LOG.info("scan %s is %s; results in %s", summary.scan_id, how, folder)
    elif began:
        report.failed += 1
        _LOG.error("no volume of this scan: %s; waiting for the next one", error)


def _rest(seconds: float, stop: StopRequest) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.by:
        time.sleep(_POLL_S)
