"""The reconstruction job: what every rank does from the first frame to the written volume."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ministream import log, partition
from ministream.app.ingress import Ingress
from ministream.app.results import Results
from ministream.config import Config
from ministream.errors import ConfigError
from ministream.model import FrameKind, Scan
from ministream.monitor import StageClock, Summary
from ministream.parallel import mpi
from ministream.parallel.distribute import Distributor, Rows
from ministream.prep import Corrector
from ministream.recon import Geometry, Window, open_algorithm, padded_slices, set_threads, warm_up

_LOG = log.get(__name__)

# Frames that one broadcast announces: enough to amortise it, few enough that the ranks' staging stays
# small beside the window.
BATCH = 16


def recon(
    load_config: Callable[[], Config],
    ranks: int | None,
    announce_to: Path | None,
    log_level: str | None,
) -> Summary | None:
    """Reconstruct one scan; collective over all ranks. The summary comes back on rank 0, None elsewhere.

    Raises the typed error of whatever failed: on rank 0 where every rank failed together; a rank that
    fails alone ends the job.
    """
    comm = mpi.world(ranks)
    log.setup(f"rank {comm.rank}", log_level or "INFO")
    with mpi.ending_together(comm), ExitStack() as stack:
        with comm.together():
            config = load_config()
            ingress = stack.enter_context(Ingress(config)) if comm.rank == 0 else None
            if ingress is not None:
                ingress.announce(announce_to)
        threads = config.recon.threads or mpi.fair_threads(comm)
        set_threads(threads)
        warm_up()  # while the producer is still on its way
        with comm.together():
            scan = ingress.scan() if ingress is not None else None
        known = comm.bcast(scan)
        assert known is not None
        job = Job(comm, config, known, ingress, threads)
        stack.callback(job.close)
        return job.run()


class Job:
    """One rank's part of one scan: its slab, its window, its image."""

    def __init__(self, comm: mpi.Comm, config: Config, scan: Scan, ingress: Ingress | None, threads: int) -> None:
        self._comm = comm
        self._ingress = ingress
        self._clock = StageClock()
        with comm.together():
            config = resolved(config, scan)
            slabs = partition.slabs(scan.rows, comm.size)
            slab = slabs[comm.rank]
            geometry = Geometry(n=scan.cols, cols=scan.cols, axis_col=axis_of(config, scan))
            self._window = Window(
                length=config.window.length, step=config.window.step, cols=scan.cols, slices=slab.rows
            )
            self._corrector = Corrector(rows=slab.rows, cols=scan.cols, options=config.prep)
            self._algorithm = open_algorithm(config.recon, geometry, slab.rows)
            self._image = np.zeros((scan.cols, scan.cols, padded_slices(slab.rows)), np.float32)
        self._iterations = config.window.iterations
        batch = min(BATCH, config.window.step)
        if ingress is not None:
            ingress.begin(batch=batch, step=config.window.step)
        self._distributor = Distributor(comm, scan, slabs, batch, ingress.feed if ingress else None)
        self._results = Results(comm, config, scan, slab, threads, self._clock)

    def run(self) -> Summary | None:
        """Take batches until the stream ends; update the image whenever the window is due."""
        started = time.monotonic()
        while (batch := self._distributor.take()) is not None:
            with self._clock.timed("prep"):
                for rows in batch:
                    self._accept(rows)
            if self._ingress is not None:
                self._ingress.acknowledge()
            if self._window.due:
                self._update()
        if self._window.fresh:
            self._update()
        if self._ingress is not None and self._ingress.failure is not None:
            self._comm.agree(self._ingress.failure)
        ...
