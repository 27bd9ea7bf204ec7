"""The objects of a run on one rank, and the list of those whose state a restart needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.assignment import Assignment
from ministream.app.recon.axis_follower import AxisFollower
from ministream.app.recon.axis_search import GivenAxis
from ministream.app.recon.books import Books
from ministream.app.recon.gate import ScanGate, mask_of
from ministream.app.recon.pacing import Pacing
from ministream.app.recon.sinograms import UpdateSinograms
from ministream.app.recon.steering import Steering
from ministream.ledger import Ledger
from ministream.parallel.mpi import Comm
from ministream.prep.corrections import Corrector
from ministream.recon import backend, open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.weights import Sharing
from ministream.recon.window import Window
from ministream.state import Slabwise, State, Stateful


class SlabImage:
    """The image of this rank's slab; `handle` belongs to its backend."""

    def __init__(self, geometry: Geometry, slices: int) -> None:
        self._backend, self._slices = backend.default(), slices
        self.handle = self._backend.new_image(geometry, slices)

    def host(self) -> NDArray[np.float32]:
        """[row, col, padded slices] in the host's memory, valid until the next update."""
        return self._backend.host(self.handle)

    def state(self) -> State:
        """The slices, without padding."""
        return {"values": Slabwise(array=self.host()[:, :, : self._slices], axis=2)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the slices of this slab."""
        padded = np.zeros_like(self.host())
        padded[:, :, : self._slices] = state["values"]
        self._backend.copy(self.handle, padded)


class Parts:
    """Created from an assignment; equal on all ranks except for the slab."""

    def __init__(self, comm: Comm, assignment: Assignment, sharing: Sharing, ledger: Ledger) -> None:
        scan, slices, window = assignment.scan, assignment.slab.rows, assignment.config.window
        backend.default().warm_up(slices)
        geometry = Geometry(n=assignment.n, cols=scan.cols, axis_col=assignment.axis_col)
        self.window = Window(length=window.length, step=window.step, cols=scan.cols, slices=slices)
        prep = assignment.config.prep
        mask = mask_of(prep.mask, assignment)
        self.corrector = Corrector(
            rows=slices,
            cols=scan.cols,
            options=prep,
            mask=mask,
            dtype=scan.dtype,
            pixel_size_um=scan.pixel_size_um,
            energy_kev=scan.energy_kev,
        )
        self.sinograms = UpdateSinograms(assignment)
        self.gate = ScanGate(comm, assignment, self.corrector)
        self.algorithm = open_algorithm(assignment.config.recon, geometry, slices, sharing)
        self.image = SlabImage(geometry, slices)
        self.pacing = Pacing(comm, assignment)
        self.axis = AxisFollower(comm, assignment, self.algorithm)
        self.given_axis = GivenAxis(comm, assignment)
        self.steering = Steering(comm, assignment, self.window, self.pacing, self.axis)
        self.books = Books(ledger=ledger, axis=self.axis.provenance, steering=lambda: tuple(self.steering.history))

    @property
    def _stateful(self) -> dict[str, Stateful]:
        return {
            "window": self.window,
            "corrector": self.corrector,
            "gate": self.gate,
            "algorithm": self.algorithm,
            "image": self.image,
            "axis": self.axis,
            "pacing": self.pacing,
            "books": self.books,
            "steering": self.steering,
        }

    def state(self) -> dict[str, Any]:
        """The state of all parts, with keys `part.name`; plain values are those of rank 0."""
        return {
            f"{part}.{name}": value for part, held in self._stateful.items() for name, value in held.state().items()
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the result of `state`, with plain arrays cut to this rank's rows; collective."""
        for part, held in self._stateful.items():
            prefix = f"{part}."
            held.restore({name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)})
        self.axis.refill(self.window)
        self.given_axis.refill(self.window)
