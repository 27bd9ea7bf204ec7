"""A performance model: what a machine of known constants does with a streamed scan, and what bounds it.

All resources work at once: rank 0 receives and scatters while every rank corrects and updates and a thread of each
writes, so a scan runs at the pace of the slowest of them. For one window step of `step` projections:

    ingress   step (frame bytes / ingress bandwidth + time per frame), the frame's bands over k receiving ranks
    scatter   step × frame bytes × (1 - k/R) / scatter bandwidth: what a receiving rank sends to the others
    compute   prep: step × pixels / prep rate
              + update: iterations × n² × length × (padded slices + slices₀) / (update rate × threads)
              + weights: n² × changed / (weight rate × threads × R) + n² × time per pixel + time per update
              + exchange: 4 bytes × n² × (1 - 1/R) / scatter bandwidth: the other ranks' part of the weights
              + copy: image / copy bandwidth, where a snapshot is due
              + receiving: what the cores that receive take from those that compute, where a node has none to spare
    write     volume / write bandwidth, where a snapshot is due

The update's cost per projection and pixel of one slice has a part that is paid once for all slices of the slab (the
geometry), written as `slices₀` more slices. Weights are the same on every rank: each computes a part of them. `changed`
counts a projection that comes twice (row and column sums) and one that leaves once. A core is slower by `crowding`
when all cores of its node compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from ministream import config
from ministream.errors import ConfigError
from ministream.recon.footprint import memory_bytes, padded_slices
from ministream.recon.geometry import Geometry

GIB = 2**30
MOST_NODES = 4096


class Machine(config.Section):
    """The constants of a machine, measured by `python -m benchmarks model`; rates are per second."""

    name: str = "this machine"
    cores_per_node: int = Field(ge=1)
    ranks_per_node: int = Field(ge=1, description="at most; one per NUMA domain is a good start")
    memory_gib_per_node: float = Field(gt=0)
    updates_per_core: float = Field(gt=0, description="pixel updates (forward and back together) of one core")
    slices_0: float = Field(ge=0, description="slices that the work shared by all slices of a slab amounts to")
    crowding: float = Field(default=0.0, ge=0, description="by how much a core is slower when all of the node compute")
    weights_per_core: float = Field(gt=0, description="pixels of the weights, per projection that comes or goes")
    seconds_per_pixel: float = Field(default=0.0, ge=0, description="of the weights once per update, on one core")
    seconds_per_update: float = Field(default=0.0, ge=0)
    prep_pixels_per_rank: float = Field(gt=0, description="corrected; one thread of a rank does it")
    ingress_bytes: float = Field(gt=0, description="what one receiving rank takes from its tunnel")
    seconds_per_frame: float = Field(ge=0, description="what a receiving rank spends on a frame of no size")
    ingress_cores: float = Field(default=2.0, ge=0, description="cores that receiving at full speed keeps busy")
    scatter_bytes: float = Field(gt=0, description="what one rank sends to the others")
    write_bytes: float = Field(gt=0, description="what all ranks together write")
    copy_bytes: float = Field(default=5e9, gt=0, description="what one core copies: an image, before it is written")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A streamed scan and its window. `projections` only matters to a scan that ends.

    `credit_bytes` may be on the way before anything is computed.
    """

    rows: int
    cols: int
    projections: int
    length: int
    step: int
    iterations: int = 1
    write_freq: int = 0
    pixel_bytes: int = 2
    credit_bytes: int = 256 << 20

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
class StepPrediction:
    """Seconds per window step for each resource, and what follows; `parts_s` are those of `compute_s`."""

    layout: Layout
    step: int
    ingress_s: float
    scatter_s: float
    compute_s: float
    write_s: float
    parts_s: dict[str, float]
    memory_gib_per_node: float
    memory_share: float

    @property
    def seconds(self) -> float:
        """One window step."""
        return max(self.limits_s.values())

    @property
    def limits_s(self) -> dict[str, float]:
        """Seconds of each resource; computing goes by the name of its largest part."""
        slowest = max(self.parts_s, key=lambda part: self.parts_s[part])
        named = {"ingress": self.ingress_s, "scatter": self.scatter_s, "write": self.write_s}
        return named | {slowest: self.compute_s}

    @property
    def projections_per_s(self) -> float:
        """What the job keeps up with."""
        return self.step / self.seconds

    @property
    def bound(self) -> str:
        """What limits it: memory that is not there, or the slowest resource."""
        limits = self.limits_s
        return "memory" if self.memory_share > 1 else max(limits, key=lambda name: limits[name])


def predict(machine: Machine, work: Workload, layout: Layout) -> StepPrediction:
    """One step of a full window. Raises ConfigError for more ranks than rows."""
    largest = work.largest_slab(layout.ranks)
    receiving = min(layout.ingress, layout.ranks)
    band = work.frame_bytes / receiving
    gone = work.step if work.step < work.length else 0
    parts = update_parts_s(machine, work, layout, Moment(held=work.length, new=work.step, gone=gone))
    ingress_s = work.step * (band / machine.ingress_bytes + machine.seconds_per_frame)
    own_s = sum(parts.values())
    compute_s = _compute_s(machine, layout, own_s, ingress_s)
    memory_gib = layout.ranks / layout.nodes * rank_bytes(work, largest) / GIB
    return StepPrediction(
        layout=layout,
        step=work.step,
        ingress_s=ingress_s,
        scatter_s=work.step * band * (1 - receiving / layout.ranks) / machine.scatter_bytes,
        compute_s=compute_s,
        write_s=work.volume_bytes / machine.write_bytes / work.write_freq if work.write_freq else 0.0,
        parts_s=parts | {"receiving": compute_s - own_s},
        memory_gib_per_node=memory_gib,
        memory_share=memory_gib / machine.memory_gib_per_node,
    )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One update: the projections that the window holds, and those that came and went since the update before."""

    held: int
    new: int
    gone: int = 0

    @property
    def changed(self) -> int:
        """Projections that the weights take in, twice, and take out."""
        return 2 * self.new + self.gone


def moments(work: Workload) -> list[Moment]:
    """Every update of a scan that ends, the last one with the rest."""
    found = []
    for before in range(0, work.projections, work.step):
        fed = min(before + work.step, work.projections)
        gone = max(0, fed - work.length) - max(0, before - work.length)
        # where nothing of the window stays, nothing is taken out of the sums
        found.append(Moment(held=min(fed, work.length), new=fed - before, gone=gone if gone < work.length else 0))
    return found


def update_parts_s(machine: Machine, work: Workload, layout: Layout, moment: Moment) -> dict[str, float]:
    """Seconds that the rank with the most slices computes for one update."""
    slices, pixels = work.largest_slab(layout.ranks), work.cols**2
    padded, threads = padded_slices(slices), layout.threads / _slower(machine, layout)
    visits = work.iterations * pixels * moment.held
    copied = 1 / work.write_freq if work.write_freq else 0.0
    return {
        "prep": moment.new * slices * work.cols / machine.prep_pixels_per_rank,
        "update": visits * (padded + machine.slices_0) / (machine.updates_per_core * threads),
        "weights": pixels * moment.changed / (machine.weights_per_core * threads * layout.ranks)
        + pixels * machine.seconds_per_pixel
        + machine.seconds_per_update,
        "exchange": exchange_s(machine.scatter_bytes, work, layout.ranks),
        "copy": copied * pixels * padded * 4 / machine.copy_bytes,
    }


def exchange_s(scatter_bytes: float, work: Workload, ranks: int) -> float:
    """Seconds in which a rank gets the weights (float32) that the others have computed."""
    return 4 * work.cols**2 * (1 - 1 / ranks) / scatter_bytes


def _slower(machine: Machine, layout: Layout) -> float:
    """How many times longer a core takes than alone on its node; more threads than cores take turns."""
    cores, busy = machine.cores_per_node, layout.ranks * layout.threads / layout.nodes
    crowd = (min(busy, cores) - 1) / (cores - 1) if cores > 1 else 0.0
    return (1 + machine.crowding * max(0.0, crowd)) * max(1.0, busy / cores)


def _compute_s(machine: Machine, layout: Layout, own_s: float, ingress_s: float) -> float:
    """Seconds of computing on the node that receives, whose cores have both to do."""
    cores = machine.cores_per_node
    computing = min(cores, layout.ranks * layout.threads / layout.nodes)
    return max(own_s, (own_s * computing + ingress_s * min(machine.ingress_cores, cores)) / cores)


def scan_s(machine: Machine, work: Workload, layout: Layout) -> float:
    """Seconds of a whole scan whose producer is always ahead.

    What the credit covers is there when the first update begins; the rest arrives while the ranks compute.
    """
    full = predict(machine, work, layout)
    per_projection_s = max(full.ingress_s, full.scatter_s) / work.step
    updates = moments(work)
    late = max(0, work.projections - work.credit_bytes // work.frame_bytes)
    arrive_s = []
    for update in reversed(updates):
        arrive_s.append(per_projection_s * min(late, update.new))
        late -= min(late, update.new)
    arrive_s.reverse()
    seconds = arrive_s[0]
    for update, next_s in zip(updates, [*arrive_s[1:], 0.0], strict=True):
        own_s = sum(update_parts_s(machine, work, layout, update).values())
        seconds += max(_compute_s(machine, layout, own_s, next_s), next_s)
    return seconds


def rank_bytes(work: Workload, slices: int) -> int:
    """Bytes that a rank holds at its peak for its slab, beside what an idle rank holds."""
    geometry = Geometry(n=work.cols, cols=work.cols, axis_col=(work.cols - 1) / 2)
    return memory_bytes(geometry, slices, work.length).total


def on_nodes(machine: Machine, work: Workload, nodes: int, ingress: int = 1) -> StepPrediction:
    """The best that all cores of `nodes` nodes do, in as many ranks per node or fewer."""
    found = []
    for per_node in range(1, machine.ranks_per_node + 1):
        ranks = min(work.rows, nodes * per_node)
        threads = max(1, min(nodes * machine.cores_per_node // ranks, machine.cores_per_node))
        found.append(predict(machine, work, Layout(ranks=ranks, threads=threads, nodes=nodes, ingress=ingress)))
    return max(found, key=lambda one: (one.memory_share <= 1, one.projections_per_s))


def nodes_for(
    machine: Machine, work: Workload, rate: float, ingress: int = 1, most: int = MOST_NODES
) -> StepPrediction | None:
    """The fewest nodes that keep up with `rate` projections/s and hold the slabs; None where no number does."""
    for nodes in _candidates(most):
        found = on_nodes(machine, work, nodes, ingress)
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
