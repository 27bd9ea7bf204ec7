"""Observers of a run: the data they receive for each update, and the isolation of a failing observer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ministream import log, registry
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.reference import ReferenceComparison
from ministream.errors import MinistreamError
from ministream.ledger import Ledger
from ministream.model import Notice
from ministream.monitor import StageClock
from ministream.parallel.mpi import Comm
from ministream.state import State
from ministream.storage import VolumeState, VolumeWriter

if TYPE_CHECKING:  # its books create the updates of this module
    from ministream.app.recon.parts import Parts
    from ministream.monitor.endpoint import MetricsEndpoint  # needs prometheus-client

_LOG = log.get(__name__)

_PLUGINS = "ministream.app.recon.observers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """Data of one update of the image.

    `index` counts updates from 1. `image` [row, col, padded slices] is this rank's slab, valid during the call.
    `residual_norm` is |b - A x| of the volume before the last of `iterations`, None for an algorithm that has none.
    `ledger` and `behind_s`, the age of the newest projection in the image, are rank 0's. `acquired_s` are the UNIX
    times of the projections that are new in it. `elapsed_s` counts from the start of the run. `state` is the metadata
    of a file with this image. `snapshot`: an operator asks for one.
    """

    index: int
    image: NDArray[np.float32]
    iterations: int
    residual_norm: float | None
    ledger: Ledger
    elapsed_s: float
    behind_s: float | None
    acquired_s: tuple[float, ...]
    state: VolumeState
    snapshot: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeWritten:
    """The end of a run: the path of the volume, and whether it contains every delivered projection.

    `missing`, on rank 0, are the reasons why not.
    """

    volume: Path
    complete: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """The interface of a run for its observers, which share these objects. `console` is the user's, on rank 0.

    `clock` and `parts` are this rank's; `notices` returns, on rank 0, the warnings about the scan so far.
    `state` returns everything a restart needs, `position` the last stream frame in that state, and `saved` accepts
    the position up to which the producer may discard frames. `shown_at` returns the time that the image shows, as
    a share of the scan: the middle of the window. `dropped` returns, on rank 0, the numbers of projections that the
    producer left out so far, by reason. `finish`, on rank 0, ends the stream for a reason, as a signal does.
    `metrics` is rank 0's endpoint, if there is one.
    """

    comm: Comm
    assignment: Assignment
    clock: StageClock
    parts: Parts
    notices: Callable[[], tuple[Notice, ...]]
    writer: VolumeWriter
    comparison: ReferenceComparison
    console: Console
    state: Callable[[], State]
    position: Callable[[], int]
    saved: Callable[[int], None]
    shown_at: Callable[[], float]
    dropped: Callable[[], Mapping[str, int]]
    finish: Callable[[str], None]
    metrics: MetricsEndpoint | None = None


class Observer(Protocol):
    """Observes a run; `observe(run)` of each module in `observers` creates one, or returns None if not configured.

    `stage` is the stage clock that counts its time. `collective`: every rank has an instance, and its calls wait for
    the other ranks; code that can fail on one rank alone must then run inside `Comm.together`.
    """

    stage: ClassVar[str]
    collective: ClassVar[bool]

    @property
    def files(self) -> Sequence[Path]:
        """The files that it has written."""
        ...

    def started(self) -> None:
        """The job waits for the first frames."""
        ...

    def updated(self, update: Update) -> None:
        """The image has been updated."""
        ...

    def interrupted(self) -> None:
        """The stream has ended early; the image may not contain the whole window yet."""
        ...

    def finished(self, written: VolumeWritten) -> None:
        """The volume and the summary are written."""
        ...

    def poll(self) -> None:
        """Progress pending work without blocking, while this rank computes or waits; not collective."""
        ...

    def close(self) -> None:
        """Release resources at the end of the job, also after an error; not collective."""
        ...


class Quiet:
    """An observer that does nothing; a base for others."""

    stage: ClassVar[str] = "observers"
    collective: ClassVar[bool] = False

    def __init__(self) -> None:
        self._files: list[Path] = []

    @property
    def files(self) -> Sequence[Path]:
        """The files that it has written."""
        return self._files

    def started(self) -> None:
        """Nothing."""

    def updated(self, update: Update) -> None:
        """Nothing."""

    def interrupted(self) -> None:
        """Nothing."""

    def finished(self, written: VolumeWritten) -> None:
        """Nothing."""

    def poll(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Observers:
    """All observers of this rank, in the same order on every rank.

    A failing observer is logged once, called again the next time, and listed in `failures` with its first error and
    the failure count. An error on one rank alone in a collective observer is fatal, because the other ranks would hang.

    Raises ConfigError where a requested observer cannot be created.
    """

    def __init__(self, run: Run, clock: StageClock, names: Sequence[str] | None = None) -> None:
        found = {name: _open(name, run) for name in names or registry.names(_PLUGINS)}
        self._observers = {name: observer for name, observer in found.items() if observer is not None}
        self._comm, self._clock = run.comm, clock
        self._failed: dict[str, tuple[str, int]] = {}

    def started(self) -> None:
        """Notify all observers."""
        self._tell(lambda observer: observer.started())

    def updated(self, update: Update) -> None:
        """Notify all observers."""
        self._tell(lambda observer: observer.updated(update))

    def interrupted(self) -> None:
        """Notify all observers."""
        self._tell(lambda observer: observer.interrupted())

    def finished(self, written: VolumeWritten) -> None:
        """Notify all observers."""
        self._tell(lambda observer: observer.finished(written))

    def poll(self) -> None:
        """Notify all observers; called often."""
        for name, observer in self._observers.items():
            with self._surviving(name, observer, alone=True):
                observer.poll()

    def close(self) -> None:
        """Notify all observers, even after earlier failures."""
        for name, observer in self._observers.items():
            with self._surviving(name, observer, alone=True):
                observer.close()

    @property
    def files(self) -> list[Path]:
        """The files that they have written so far."""
        return [path for observer in self._observers.values() for path in observer.files]

    @property
    def failures(self) -> dict[str, str]:
        """The first error of each failed observer, and its failure count."""
        return {
            name: error + (f" ({count} times)" if count > 1 else "") for name, (error, count) in self._failed.items()
        }

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for name, observer in self._observers.items():
            with self._clock.timed(observer.stage), self._surviving(name, observer):
                call(observer)

    @contextmanager
    def _surviving(self, name: str, observer: Observer, *, alone: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            together = isinstance(error, MinistreamError) and error.everywhere
            if observer.collective and not (together or alone) and self._comm.size > 1:
                raise
            first, count = self._failed.get(name, (_line(error), 0))
            self._failed[name] = first, count + 1
            if not count and (self._comm.rank == 0 or not together):
                _LOG.warning("%s failed, the run continues: %s", name, first)
                _LOG.debug("the traceback of %s", name, exc_info=True)


def _open(name: str, run: Run) -> Observer | None:
    return cast("Observer | None", registry.load(_PLUGINS, name).observe(run))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, MinistreamError) else f"{type(error).__name__}: {text}"
