"""A performance model: what a machine of known constants does with a streamed scan, and what bounds it.

All resources work at once: rank 0 receives and scatters while every rank corrects and updates, so a scan runs at the
pace of the slowest of them. For one window step of `step` projections:

    ingress   step (frame bytes / ingress bandwidth + time per frame), the frame's bands over k receiving ranks
    scatter   step × frame bytes × (1 - 1/R) / scatter bandwidth: what a receiving rank sends to the others
    compute   prep: step × pixels / (prep rate × cores)
              + update: iterations × n² × length × (padded slices + slices₀) / (update rate × threads) + time per update
              + write: volume / write bandwidth, every `write_freq` updates; ranks that write do not compute

The update's cost per projection and pixel of one slice has a part that is paid once for all slices of the slab (the
geometry), written as `slices₀` more slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from ministream import config
from ministream.errors import ConfigError
from ministream.recon.geometry import Geometry, memory_bytes, padded_slices

GIB = 2**30


class Machine(config.Section):
    """The constants of a machine, measured by `python -m benchmarks model`; rates are per second."""

    name: str = "this machine"
    cores_per_node: int = Field(ge=1)
    ranks_per_node: int = Field(ge=1, description="one per NUMA domain is a good start")
    memory_gib_per_node: float = Field(gt=0)
    updates_per_core: float = Field(gt=0, description="pixel updates (forward and back together) of one core")
    slices_0: float = Field(ge=0, description="slices that the work shared by all slices of a slab amounts to")
    seconds_per_update: float = Field(ge=0)
    prep_pixels_per_core: float = Field(gt=0)
    ingress_bytes: float = Field(gt=0, description="what one receiving rank takes from its tunnel")
    seconds_per_frame: float = Field(ge=0, description="what a receiving rank spends on a frame of no size")
    scatter_bytes: float = Field(gt=0, description="what one rank sends to the others")
    write_bytes: float = Field(gt=0, description="what all ranks together write")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A streamed scan and its window. `projections` only matters to a scan that ends."""

    rows: int
    cols: int
    projections: int
    length: int
    step: int
    iterations: int = 1
    write_freq: int = 0
    pixel_bytes: int = 2

    @property
    def frame_bytes(self) -> int:
        """Bytes of one projection."""
        return self.rows * self.cols * self.pixel_bytes

    @property
    def volume_bytes(self) -> int:
        """Bytes of one volume."""
        return self.rows * self.cols**2 * 4

    def largest_slab(self, ranks: int) -> int:
        """Rows of the rank that has the most. Raises ConfigError for more ranks than rows."""
        if ranks > self.rows:
            raise ConfigError(f"{ranks} ranks cannot share {self.rows} detector rows")
        return -(-self.rows // ranks)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks and what they have; `ingress` ranks receive."""

    ranks: int
    threads: int
    nodes: int = 1
    ingress: int = 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds per window step for each resource, and what follows."""

    layout: Layout
    step: int
    ingress_s: float
    scatter_s: float
    compute_s: float
    parts_s: dict[str, float]
    memory_gib_per_node: float
    memory_share: float

    @property
    def seconds(self) -> float:
        """One window step."""
        return max(self.ingress_s, self.scatter_s, self.compute_s)

    @property
    def projections_per_s(self) -> float:
        """What the job keeps up with."""
        return self.step / self.seconds

    @property
    def bound(self) -> str:
        """What limits it: memory that is not there, or the slowest resource."""
        if self.memory_share > 1:
            return "memory"
        slowest = max(self.parts_s, key=lambda part: self.parts_s[part])
        limits = {"ingress": self.ingress_s, "scatter": self.scatter_s, slowest: self.compute_s}
        return max(limits, key=lambda name: limits[name])


def predict(machine: Machine, work: Workload, layout: Layout) -> Prediction:
    """One step of a full window. Raises ConfigError for more ranks than rows."""
    largest = work.largest_slab(layout.ranks)
    receiving = min(layout.ingress, layout.ranks)
    band = work.frame_bytes / receiving
    parts = {
        "prep": work.step * largest * work.cols / (machine.prep_pixels_per_core * layout.threads),
        "update": update_s(machine, work, largest, layout.threads, work.length),
        "write": work.volume_bytes / machine.write_bytes / work.write_freq if work.write_freq else 0.0,
    }
    memory_gib = layout.ranks / layout.nodes * rank_bytes(work, largest) / GIB
    return Prediction(
        layout=layout,
        step=work.step,
        ingress_s=work.step * (band / machine.ingress_bytes + machine.seconds_per_frame),
        scatter_s=work.step * band * (1 - receiving / layout.ranks) / machine.scatter_bytes,
        compute_s=sum(parts.values()),
        parts_s=parts,
        memory_gib_per_node=memory_gib,
        memory_share=memory_gib / machine.memory_gib_per_node,
    )


def update_s(machine: Machine, work: Workload, slices: int, threads: int, held: int) -> float:
    """Seconds of one update of a window that holds `held` projections, on the rank with the most slices."""
    visits = work.iterations * work.cols**2 * held
    return (
        visits * (padded_slices(slices) + machine.slices_0) / (machine.updates_per_core * threads)
        + machine.seconds_per_update
    )


def scan_s(machine: Machine, work: Workload, layout: Layout) -> float:
    """Seconds of a whole scan whose producer is always ahead: the window fills, the first step overlaps nothing."""
    full = predict(machine, work, layout)
    largest = work.largest_slab(layout.ranks)
    arrive_s = max(full.ingress_s, full.scatter_s)
    rest_s = full.compute_s - full.parts_s["update"]
    fills = [min(fed, work.length) for fed in range(work.step, work.projections + 1, work.step)]
    steps = [rest_s + update_s(machine, work, largest, layout.threads, held) for held in fills]
    return arrive_s + sum(max(arrive_s, step_s) for step_s in steps[:-1]) + steps[-1]


def rank_bytes(work: Workload, slices: int) -> int:
    """Bytes that a rank holds at its peak for its slab, beside what an idle rank holds."""
    geometry = Geometry(n=work.cols, cols=work.cols, axis_col=(work.cols - 1) / 2)
    return memory_bytes(geometry, slices, work.length).total


def on_nodes(machine: Machine, work: Workload, nodes: int, ingress: int = 1) -> Layout:
    """All cores of `nodes` nodes, in no more ranks than there are rows."""
    ranks = min(work.rows, nodes * machine.ranks_per_node)
    threads = max(1, nodes * machine.cores_per_node // ranks)
    return Layout(ranks=ranks, threads=threads, nodes=nodes, ingress=ingress)


def nodes_for(machine: Machine, work: Workload, rate: float, ingress: int = 1, most: int = 4096) -> Prediction | None:
    """The fewest nodes that keep up with `rate` projections/s and hold the slabs; None where no number does."""
    for nodes in _candidates(most):
        found = predict(machine, work, on_nodes(machine, work, nodes, ingress))
        if found.projections_per_s >= rate and found.memory_share <= 1:
            return found
    return None


def ingress_for(machine: Machine, work: Workload, rate: float) -> int:
    """Receiving ranks that `rate` projections/s need."""
    per_frame_s = 1 / rate - machine.seconds_per_frame
    if per_frame_s <= 0:
        return 0
    return max(1, math.ceil(work.frame_bytes / machine.ingress_bytes / per_frame_s))


def _candidates(most: int) -> Iterable[int]:
    """1 to 16 one by one, then in steps of about 6 %: nobody asks for 1237 nodes."""
    nodes = 1
    while nodes <= most:
        yield nodes
        nodes += max(1, nodes // 16)
