"""How many nodes of a machine a rate takes."""

from __future__ import annotations

from collections.abc import Iterable

from ministream.performance.pace import Prediction, predict
from ministream.performance.work import Layout, Machine, Workload

MOST_NODES = 4096


def on_nodes(machine: Machine, work: Workload, nodes: int, ingress: int = 1) -> Prediction:
    """The best that all cores of `nodes` nodes do, in as many ranks per node or fewer."""
    found = []
    for per_node in range(1, machine.ranks_per_node + 1):
        ranks = min(work.rows, nodes * per_node)
        threads = max(1, min(nodes * machine.cores_per_node // ranks, machine.cores_per_node))
        found.append(predict(machine, work, Layout(ranks=ranks, threads=threads, nodes=nodes, ingress=ingress)))
    return max(found, key=lambda one: (one.memory_share <= 1, one.projections_per_s))


def nodes_for(
    machine: Machine, work: Workload, rate: float, ingress: int = 1, most: int = MOST_NODES
) -> Prediction | None:
    """The fewest nodes that keep up with `rate` projections/s and hold the slabs; None where no number does."""
    for nodes in _candidates(most):
        found = on_nodes(machine, work, nodes, ingress)
        if found.projections_per_s >= rate and found.memory_share <= 1:
            return found
    return None


def _candidates(most: int) -> Iterable[int]:
    """1 to 16 one by one, then in steps of about 6 %: nobody asks for 1237 nodes."""
    nodes = 1
    while nodes <= most:
        yield nodes
        nodes += max(1, nodes // 16)
