"""A model of what a streamed scan needs and how fast it is reconstructed, on a machine of known constants.

All resources work at once: rank 0 receives and scatters while every rank corrects and updates and a thread of each
writes, so a scan runs at the pace of the slowest of them. For one window step of `step` projections:

    ingress   step (frame bytes / ingress bandwidth + time per frame), the frame's bands over k receiving ranks
    scatter   step × frame bytes × (1 - k/R) / scatter bandwidth: what a receiving rank sends to the others
    compute   prep: step × pixels / prep rate
              + update: iterations × n² × length × (padded slices + slices₀) / (update rate × threads)
              + weights: n² × changed / (weight rate × threads × R) + n² × time per pixel + time per update
              + exchange: 4 bytes × n² × (1 - 1/R) / scatter bandwidth: the other ranks' part of the weights
              + copy: image / copy bandwidth, where a snapshot is due
              + receiving: the time that receiving takes from computing on a node without spare cores
    write     volume / write bandwidth, where a snapshot is due

The update's cost per projection and pixel of one slice has a part that is paid once for all slices of the slab (the
geometry), written as `slices₀` more slices. Weights are the same on every rank: each computes a part of them. `changed`
counts an arriving projection twice (row and column sums) and a leaving one once. A core is slower by `crowding` when
all cores of its node compute.

`memory` counts bytes; `ministream check` and `ministream model` both use `memory` and `predict`.
"""

from ministream.performance.memory import JobMemory, memory
from ministream.performance.nodes import MOST_NODES, nodes_for, on_nodes
from ministream.performance.pace import Moment, Prediction, exchange_s, moments, predict, scan_s, update_parts_s
from ministream.performance.work import GIB, MIB, Layout, Machine, Workload

__all__ = [
    "GIB",
    "MIB",
    "MOST_NODES",
    "JobMemory",
    "Layout",
    "Machine",
    "Moment",
    "Prediction",
    "Workload",
    "exchange_s",
    "memory",
    "moments",
    "nodes_for",
    "on_nodes",
    "predict",
    "scan_s",
    "update_parts_s",
]
