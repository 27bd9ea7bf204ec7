"""Reconstructions for whoever subscribes: gathered from all ranks to rank 0, published there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.assignment import Assignment
from ministream.errors import ConfigError
from ministream.monitor import StageClock
from ministream.monitor.publisher import ReconstructionPublisher
from ministream.parallel.mpi import Comm
from ministream.wire import timage


class Publishing:
    """Publishes the whole image every `[window] pub_freq` updates (none named: every update), if `[output] publish`
    says where. Every rank makes one.

    Raises ConfigError, on rank 0, for an address that cannot be had and an image too large for one message.
    """

    def __init__(self, comm: Comm, assignment: Assignment, clock: StageClock) -> None:
        self._comm, self._assignment, self._clock = comm, assignment, clock
        self._updates = 0
        self._publisher: ReconstructionPublisher | None = None
        self._every = (assignment.config.window.pub_freq or 1) if assignment.config.output.publish is not None else 0
        if assignment.config.output.publish is not None and comm.rank == 0:
            n, slices = assignment.scan.cols, assignment.scan.rows
            if slices * n * n * 4 > timage.LARGEST_BYTES - 1024:
                raise ConfigError(f"--pub-addr: {slices} slices of {n} × {n} are more than one message holds (2 GiB)")
            self._publisher = ReconstructionPublisher(assignment.config.output.publish)

    def updated(self, image: NDArray[np.float32]) -> None:
        """The image [row, col, padded slices] of this rank's slab is new; publish it if that is due; collective."""
        self._updates += 1
        if self._every and self._updates % self._every == 0:
            with self._clock.timed("publish"):
                self._publish(image)

    def _publish(self, image: NDArray[np.float32]) -> None:
        own = np.moveaxis(image[:, :, : self._assignment.slab.rows], 2, 0)
        if self._publisher is None:
            self._comm.send_array(np.ascontiguousarray(own), 0)
            return
        n = self._assignment.scan.cols
        volume = np.empty((self._assignment.scan.rows, n, n), np.float32)
        volume[self._assignment.slab.slice] = own
        for rank, slab in enumerate(self._assignment.slabs[1:], start=1):
            self._comm.recv_array(volume[slab.slice], rank)
        self._publisher.publish(volume, update=self._updates, axis_col=self._assignment.axis_col)

    def close(self) -> None:
        """What has been published gets a second to leave."""
        if self._publisher is not None:
            self._publisher.close()
