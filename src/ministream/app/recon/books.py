"""Counters and measurements of a run, for the volume, the summary and the observers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.observing import Update
from ministream.ledger import Ledger
from ministream.monitor import Latency
from ministream.parallel.mpi import Comm
from ministream.parallel.row_scatter import SlabFrame
from ministream.state import State
from ministream.storage import VolumeState


@dataclass(kw_only=True)
class Books:
    """Every rank has an instance; only that of rank 0 holds the `ledger` of the stream.

    `axis` describes the rotation axis, if it was found in the projections; `steering` what an operator has changed.
    `latency` is until a projection is in the image; `arrival_latency` and `published_latency`, until it arrived and
    until viewers can see it, are measured after `measure`.
    `not_yet_in_image` are the acquisition times of the projections received since the last update.
    """

    ledger: Ledger = field(default_factory=Ledger)
    latency: Latency = field(default_factory=Latency)
    arrival_latency: Latency | None = None
    published_latency: Latency | None = None
    not_yet_in_image: list[float] = field(default_factory=list)
    angles_rad: tuple[float, float] | None = None
    updates: int = 0
    repaired: int = 0
    residuals: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    axis: Callable[[], Mapping[str, float | str]] = dict
    steering: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    _repaired_here: list[int] = field(default_factory=list)
    _published: int = 0
    _started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self._started

    def measure(self) -> None:
        """Measure also the latencies that only metrics show."""
        self.arrival_latency, self.published_latency = Latency(), Latency()

    def published(self, update: Update) -> None:
        """Viewers can see the image of this update; only the first call for an update counts."""
        if self.published_latency is not None and update.index > self._published:
            self._published, now = update.index, time.time()
            for acquired_s in update.acquired_s:
                self.published_latency.record(now - acquired_s)

    def accepted(self, rows: SlabFrame, *, new: bool, repaired: int) -> None:
        """Record a projection in the window; `new` unless it is a repeat; `repaired` counts its mended pixels."""
        if new:
            self.ledger.used += 1
        else:
            self.ledger.repeated += 1
        self._repaired_here.append(repaired)
        low, high = self.angles_rad or (rows.angle_rad, rows.angle_rad)
        self.angles_rad = min(low, rows.angle_rad), max(high, rows.angle_rad)
        self.not_yet_in_image.append(rows.acquired_s)

    def updated(
        self,
        image: NDArray[np.float32],
        residual_norm2: NDArray[np.float64],
        iterations: int,
        *,
        new: int,
        missed: int,
        snapshot: bool = False,
    ) -> Update:
        """Record an update: the image now contains `new` more projections; `missed` left the window before it.

        `residual_norm2` is |b - A x|² before each of its iterations, empty for an algorithm that has none.
        """
        self.updates += 1
        self.ledger.imaged += new
        now = time.time()
        acquired = tuple(self.not_yet_in_image[missed:])
        for acquired_s in acquired:
            self.latency.record(now - acquired_s)
        behind_s = now - max(self.not_yet_in_image) if self.not_yet_in_image else None
        self.not_yet_in_image.clear()
        norms = [float(norm2) ** 0.5 for norm2 in residual_norm2[-1:]]
        self.residuals += norms
        self.iterations.append(iterations)
        return Update(
            index=self.updates,
            image=image,
            iterations=iterations,
            residual_norm=norms[0] if norms else None,
            ledger=self.ledger.copy(),
            elapsed_s=self.elapsed_s,
            behind_s=behind_s,
            acquired_s=acquired,
            state=self.volume_state(),
            snapshot=snapshot,
        )

    def state(self) -> State:
        """All counters and measurements so far."""
        found = {f"latency.{name}": value for name, value in self.latency.state().items()}
        return {
            **found,
            "ledger": json.dumps(self.ledger.as_dict()),
            "not_yet_in_image": np.array(self.not_yet_in_image),
            "angles_rad": np.array(self.angles_rad or ()),
            "updates": self.updates,
            "repaired": self.repaired,
            "residuals": np.array(self.residuals),
            "iterations": np.array(self.iterations, np.int64),
            "elapsed_s": self.elapsed_s,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the counters of the previous run; the ledger remains the same object."""
        self.ledger.take(json.loads(state["ledger"]))
        self.latency.restore({"counts": state["latency.counts"], "negative": state["latency.negative"]})
        self.not_yet_in_image = state["not_yet_in_image"].tolist()
        low_high = state["angles_rad"].tolist()
        self.angles_rad = (low_high[0], low_high[1]) if low_high else None
        self.updates, self.repaired = state["updates"], state["repaired"]
        self.residuals, self.iterations = state["residuals"].tolist(), state["iterations"].tolist()
        self._started = time.monotonic() - state["elapsed_s"]

    def agree(self, comm: Comm) -> None:
        """Sum the pixels replaced on all ranks since the last call; collective."""
        repaired = comm.sum(np.array(self._repaired_here, np.float64))
        self._repaired_here.clear()
        self.repaired += int(repaired.sum())
        self.ledger.mended += int(np.count_nonzero(repaired))

    def volume_state(self, announced: Ledger | None = None, quality: Mapping[str, float] | None = None) -> VolumeState:
        """The metadata of a volume written now; its projections count as written, since a readable file is complete."""
        ledger = self.ledger.copy()
        ledger.written = ledger.imaged
        return VolumeState(
            ledger=ledger,
            announced=announced,
            updates=self.updates,
            elapsed_s=self.elapsed_s,
            angles_rad=self.angles_rad,
            quality=quality or {},
            axis=self.axis(),
            steering=self.steering(),
        )
