"""What the model knows: a machine, a scan with its window, and the ranks that share the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from ministream import config, partition

MIB = 2**20
GIB = 2**30


class Machine(config.Section):
    """The constants of a machine, measured by `python -m benchmarks model`; rates are per second."""

    name: str = "this machine"
    cores_per_node: int = Field(ge=1)
    ranks_per_node: int = Field(ge=1, description="largest number; one per NUMA domain is a good start")
    memory_gib_per_node: float = Field(gt=0)
    idle_rank_mib: float = Field(default=225.0, ge=0, description="an idle rank: interpreter, MPI, numba")
    updates_per_core: float = Field(gt=0, description="pixel updates (forward and back together) of one core")
    slices_0: float = Field(ge=0, description="work shared by all slices of a slab, as a number of slices")
    crowding: float = Field(default=0.0, ge=0, description="slowdown of a core when all cores of its node compute")
    weights_per_core: float = Field(gt=0, description="pixels of the weights, per arriving or leaving projection")
    seconds_per_pixel: float = Field(default=0.0, ge=0, description="of the weights once per update, on one core")
    seconds_per_update: float = Field(default=0.0, ge=0)
    prep_pixels_per_rank: float = Field(gt=0, description="pixels corrected by one thread of a rank")
    ingress_bytes: float = Field(gt=0, description="bytes that one receiving rank takes from its tunnel")
    seconds_per_frame: float = Field(ge=0, description="time of a receiving rank for a frame of size zero")
    ingress_cores: float = Field(default=2.0, ge=0, description="cores that receiving at full speed keeps busy")
    scatter_bytes: float = Field(gt=0, description="bytes that one rank sends to the others")
    write_bytes: float = Field(gt=0, description="bytes that all ranks together write")
    copy_bytes: float = Field(default=5e9, gt=0, description="bytes that one core copies (an image, before writing)")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A streamed scan, its window, its algorithm and its output. `projections` matters only to a scan that ends;
    `slice_size` are the rows and columns of a slice, 0: those of the detector's columns.

    With `corrected_sinograms` an update has a copy of the window. Each receiving rank grants `credit_bytes`; `batch`
    frames at most travel to the other ranks together.
    """

    rows: int
    cols: int
    projections: int
    length: int
    step: int
    iterations: int = 1
    write_freq: int = 0
    checkpoints: bool = False
    pixel_bytes: int = 2
    calibration_frames: int = 0
    slice_size: int = 0
    credit_bytes: int = 256 * MIB
    batch: int = 16
    recon: config.ReconSection = field(default_factory=config.ReconSection)
    writer: Literal["auto", "direct", "hdf5"] = "auto"
    corrected_sinograms: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one projection."""
        return self.rows * self.cols * self.pixel_bytes

    @property
    def n(self) -> int:
        """Rows and columns of a slice."""
        return self.slice_size or self.cols

    @property
    def volume_bytes(self) -> int:
        """Bytes of one volume."""
        return self.rows * self.n**2 * 4

    def largest_slab(self, ranks: int) -> int:
        """Rows of the rank that has the most. Raises ConfigError for more ranks than rows."""
        return partition.band(self.rows, ranks, 0, 1).rows


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks, the threads of each, and the nodes that they share; `ingress` ranks receive."""

    ranks: int
    threads: int
    nodes: int = 1
    ingress: int = 1
