"""How long an update and a whole scan take, and which resource bounds them."""

from __future__ import annotations

from dataclasses import dataclass

from ministream.performance.memory import JobMemory, memory
from ministream.performance.work import GIB, Layout, Machine, Workload
from ministream.recon.footprint import padded_slices


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds per window step for each resource, and what follows; `parts_s` are those of `compute_s`.

    `memory_share` is the memory of the fullest node over what a node has.
    """

    layout: Layout
    step: int
    ingress_s: float
    scatter_s: float
    compute_s: float
    write_s: float
    parts_s: dict[str, float]
    memory: JobMemory
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
        """The rate that the job keeps up with."""
        return self.step / self.seconds

    @property
    def bound(self) -> str:
        """The limit: missing memory, or the slowest resource."""
        limits = self.limits_s
        return "memory" if self.memory_share > 1 else max(limits, key=lambda name: limits[name])


def predict(machine: Machine, work: Workload, layout: Layout) -> Prediction:
    """One step of a full window. Raises ConfigError for more ranks than rows."""
    held = memory(machine, work, layout)
    receiving = min(layout.ingress, layout.ranks)
    band = work.frame_bytes / receiving
    gone = work.step if work.step < work.length else 0
    parts = update_parts_s(machine, work, layout, Moment(held=work.length, new=work.step, gone=gone))
    ingress_s = work.step * (band / machine.ingress_bytes + machine.seconds_per_frame)
    own_s = sum(parts.values())
    compute_s = _compute_s(machine, layout, own_s, ingress_s)
    memory_gib = held.of_node(layout) / GIB
    return Prediction(
        layout=layout,
        step=work.step,
        ingress_s=ingress_s,
        scatter_s=work.step * band * (1 - receiving / layout.ranks) / machine.scatter_bytes,
        compute_s=compute_s,
        write_s=work.volume_bytes / machine.write_bytes / work.write_freq if work.write_freq else 0.0,
        parts_s=parts | {"receiving": compute_s - own_s},
        memory=held,
        memory_gib_per_node=memory_gib,
        memory_share=memory_gib / machine.memory_gib_per_node,
    )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One update: the projections in the window, and those that arrived and left since the update before."""

    held: int
    new: int
    gone: int = 0

    @property
    def changed(self) -> int:
        """Projections by which the weights change: arriving ones twice (rows and columns), leaving ones once."""
        return 2 * self.new + self.gone


def moments(work: Workload) -> list[Moment]:
    """Every update of a scan that ends; the last one takes the rest."""
    found = []
    for before in range(0, work.projections, work.step):
        fed = min(before + work.step, work.projections)
        gone = max(0, fed - work.length) - max(0, before - work.length)
        # a window replaced as a whole restarts its sums: nothing is subtracted
        found.append(Moment(held=min(fed, work.length), new=fed - before, gone=gone if gone < work.length else 0))
    return found


def update_parts_s(machine: Machine, work: Workload, layout: Layout, moment: Moment) -> dict[str, float]:
    """Seconds that the rank with the most slices computes for one update."""
    slices, pixels = work.largest_slab(layout.ranks), work.n**2
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
    """Seconds to fetch the weights (float32) that the other ranks computed."""
    return 4 * work.n**2 * (1 - 1 / ranks) / scatter_bytes


def _slower(machine: Machine, layout: Layout) -> float:
    """Slowdown of a core against one alone on its node; more threads than cores take turns."""
    cores, busy = machine.cores_per_node, layout.ranks * layout.threads / layout.nodes
    crowd = (min(busy, cores) - 1) / (cores - 1) if cores > 1 else 0.0
    return (1 + machine.crowding * max(0.0, crowd)) * max(1.0, busy / cores)


def _compute_s(machine: Machine, layout: Layout, own_s: float, ingress_s: float) -> float:
    """Seconds of computing on the receiving node, whose cores do both."""
    cores = machine.cores_per_node
    computing = min(cores, layout.ranks * layout.threads / layout.nodes)
    return max(own_s, (own_s * computing + ingress_s * min(machine.ingress_cores, cores)) / cores)


def scan_s(machine: Machine, work: Workload, layout: Layout) -> float:
    """Seconds of a whole scan whose producer is always ahead.

    Frames within the credit have arrived when the first update begins; the rest arrives while the ranks compute.
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
