"""Publishes reconstructions to subscribers: rank 0 gathers them from all ranks and publishes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.observing import Quiet, Run, Update
from ministream.errors import ConfigError
from ministream.monitor.publisher import ReconstructionPublisher
from ministream.wire import timage


class PublishImages(Quiet):
    """Publishes the whole image every `[window] pub_freq` updates, every update where that is 0.

    Raises ConfigError, on rank 0, for an address that cannot be bound and an image too large for one message.
    """

    stage = "publish"
    collective = True

    def __init__(self, run: Run, address: str) -> None:
        super().__init__()
        self._comm, self._assignment, self._books = run.comm, run.assignment, run.parts.books
        self._every = run.assignment.config.window.pub_freq or 1
        self._publisher: ReconstructionPublisher | None = None
        if run.comm.rank == 0:
            n, slices = run.assignment.n, run.assignment.scan.rows
            if slices * n * n * 4 > timage.LARGEST_BYTES - 1024:
                raise ConfigError(
                    f"--pub-addr: {slices} slices of {n} × {n} exceed one message (2 GiB). Leave --pub-addr out "
                    "and read snapshots instead (--write-freq)."
                )
            self._publisher = ReconstructionPublisher(address)

    def updated(self, update: Update) -> None:
        """Publish the image if that is due."""
        if update.index % self._every:
            return
        volume = self._gathered(update.image)
        with self._comm.together():
            if self._publisher is not None and volume is not None:
                axis_col = float(update.state.axis.get("axis_col", self._assignment.axis_col))
                self._publisher.publish(volume, update=update.index, axis_col=axis_col)
                self._books.published(update)

    def close(self) -> None:
        """Close the publisher; messages in the queue get one second to be sent."""
        if self._publisher is not None:
            self._publisher.close()

    def _gathered(self, image: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """The whole image [slice, row, col] on rank 0."""
        own = np.moveaxis(image[:, :, : self._assignment.slab.rows], 2, 0)
        if self._comm.rank:
            self._comm.send_array(np.ascontiguousarray(own), 0)
            return None
        n = self._assignment.n
        volume = np.empty((self._assignment.scan.rows, n, n), np.float32)
        volume[self._assignment.slab.slice] = own
        for rank, slab in enumerate(self._assignment.slabs[1:], start=1):
            self._comm.recv_array(volume[slab.slice], rank)
        return volume


def observe(run: Run) -> PublishImages | None:
    """An instance on every rank if a publish address is given."""
    address = run.assignment.config.output.publish
    return PublishImages(run, address) if address is not None else None
