"""Every rank a worker of its own: each receives its rows from the distributor, and none are scattered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from ministream.app.ingress import Ingress
from ministream.app.settle import Assignment
from ministream.errors import ProtocolError
from ministream.model import Frame
from ministream.parallel import mpi
from ministream.parallel.distribute import Rows, Waits

_OVER = -1


class WorkerRows:
    """In the place of `Distributor`. The ranks take the same projections together: as many as the slowest has.

    `ingress` is this rank's own. The stream is over for all ranks as soon as it is over for one.
    """

    def __init__(self, comm: mpi.Comm, my: Assignment, ingress: Ingress) -> None:
        self._comm = comm.dup()
        self._ingress = ingress
        self._shape = (my.slab.rows, my.scan.cols)
        self._frames: deque[Frame] = deque()
        self._over = False
        self.bytes_scattered = 0
        self.waits = Waits()  # what a wait was for cannot be told

    def poll(self) -> None:
        """Take in what has come for this rank. A batch is kept whole, for it ends where an update may be due."""
        if not self._frames and not self._over:
            frames = self._ingress.feed()
            self._over = frames is None
            self._frames.extend(frames or ())

    def take(self, meanwhile: Callable[[], None]) -> list[Rows] | None:
        """Wait, politely, until every rank has something; None when the stream has ended. `meanwhile` is called then.

        Raises ProtocolError where the distributor dealt the rows in another way than is agreed.
        """
        while not (count := self._agreed()):
            meanwhile()
            time.sleep(1e-3)
        if count == _OVER:
            self._end_together()
            return None
        return [self._rows(self._frames.popleft()) for _ in range(count)]

    def close(self) -> None:
        """Give the communicator back; collective, after the end of the stream."""
        self._comm.free()

    def _agreed(self) -> int:
        """How many projections every rank has; `_OVER` when one will get no more; collective."""
        self.poll()
        mine = np.array([len(self._frames) or (_OVER if self._over else 0)])
        smallest = np.empty_like(mine)
        mpi.wait_until(self._comm.raw.Iallreduce(mine, smallest, op=mpi.MPI.MIN).Test)
        return int(smallest[0])

    def _end_together(self) -> None:
        """The scan is complete only if it is for every rank."""
        endings = self._comm.allgather((self._ingress.complete, self._ingress.ending, len(self._frames)))
        for rank, (complete, ending, left) in enumerate(endings):
            if left or not complete:
                self._ingress.complete = False
                self._ingress.ending = f"rank {rank}: {ending or f'{left} projections did not reach the others'}"
                break

    def _rows(self, frame: Frame) -> Rows:
        if frame.pixels.shape != self._shape:
            raise ProtocolError(f"the distributor sent {frame.pixels.shape} pixels to the rank of {self._shape}")
        return Rows(
            kind=frame.kind,
            index=frame.index,
            angle_rad=frame.angle_rad,
            acquired_s=frame.acquired_s,
            pixels=frame.pixels,
        )
