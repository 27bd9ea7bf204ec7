"""What the ranks of a job hold at their peaks."""

from __future__ import annotations

from dataclasses import dataclass

from ministream import partition, recon
from ministream.performance.work import MIB, Layout, Machine, Workload
from ministream.recon.footprint import padded_slices
from ministream.recon.geometry import Geometry
from ministream.storage import scratch_bytes

# What the MPI library gathers in on rank 0 when ranks write one file together (measured, Open MPI 4.1).
_MPI_IO_BYTES = 32 * MIB

# What a running rank holds besides an idle one: connections, HDF5, the interpreter's own heap (measured).
_RUNNING_BYTES = 14 * MIB


@dataclass(frozen=True, kw_only=True)
class JobMemory:
    """Bytes at the peak of the rank with the largest slab.

    `every_rank` holds `slab` (by part); a receiving rank also `credit`, any other rank also `staging`, rank 0 also
    `mpi_io`. `receiving` are the ranks that receive.
    """

    slab: dict[str, int]
    credit: int
    staging: int
    mpi_io: int
    receiving: tuple[int, ...]

    @property
    def parts(self) -> dict[str, int]:
        """All parts; no rank holds all of them."""
        return self.slab | {"credit": self.credit, "staging": self.staging, "MPI-IO": self.mpi_io}

    @property
    def peaks(self) -> dict[str, int]:
        """Peak of rank 0, of the other ranks that receive (if any), and of all others."""
        every = sum(self.slab.values())
        peaks = {"rank 0": every + self.credit + self.mpi_io}
        if len(self.receiving) > 1:
            peaks["ranks that receive"] = every + self.credit
        return peaks | {"other ranks": every + self.staging}

    def of_node(self, layout: Layout) -> int:
        """The ranks on the fullest node together, which is rank 0's."""
        here = -(-layout.ranks // layout.nodes)
        receiving = min(here, -(-len(self.receiving) // layout.nodes))
        own = here * sum(self.slab.values()) + self.mpi_io
        return own + receiving * self.credit + (here - receiving) * self.staging


def memory(machine: Machine, work: Workload, layout: Layout) -> JobMemory:
    """Predict the peaks of all ranks. Raises ConfigError for more ranks than rows."""
    groups = partition.groups(layout.ranks, min(layout.ingress, layout.ranks))
    band = partition.band(work.rows, layout.ranks, 0, len(groups[0]))
    slices, row_bytes = work.largest_slab(layout.ranks), work.cols * work.pixel_bytes
    geometry = Geometry(n=work.n, cols=work.cols, axis_col=(work.cols - 1) / 2)
    held = recon.memory(work.recon, geometry, slices, work.length)
    return JobMemory(
        slab={
            "base": round(machine.idle_rank_mib * MIB) + _RUNNING_BYTES,
            "window": held.window,
            "sinograms": held.window if work.corrected_sinograms else 0,
            "image": held.images,
            "residual": held.residuals,
            "weights": held.weights,
            "calibration": slices * work.cols * (6 * 8 + work.calibration_frames * work.pixel_bytes),
            "writing": _writing_bytes(work, slices, layout.ranks),
            "checkpoint": _checkpoint_bytes(work, slices),
        },
        credit=_credit_bytes(work, band.rows * row_bytes),
        staging=min(work.batch, work.step) * slices * row_bytes,
        mpi_io=_MPI_IO_BYTES if layout.ranks > 1 and work.writer != "direct" else 0,
        receiving=tuple(group.start for group in groups),
    )


def _credit_bytes(work: Workload, band_bytes: int) -> int:
    """Frames in flight: all that the credit allows, or all that the scan has where those are fewer."""
    frames = work.projections + work.calibration_frames
    return min(work.credit_bytes, frames * band_bytes) if work.projections else work.credit_bytes


def _checkpoint_bytes(work: Workload, slices: int) -> int:
    """The copies that a rank writes while it computes on: image and window without padding, and what the gate keeps.

    The gate keeps six numbers of a projection and row, which exist twice while they are collected.
    """
    values = work.n**2 + work.length * work.cols + 2 * 6 * work.projections
    return values * slices * 4 if work.checkpoints else 0


def _writing_bytes(work: Workload, slices: int, ranks: int) -> int:
    """The buffers of the writers, and the copy of the image that a rank writes while it computes the next one."""
    buffer, copy = scratch_bytes(slices, work.n), work.n**2 * padded_slices(slices) * 4
    if not work.write_freq or work.writer == "hdf5":
        return buffer
    # the snapshots' writer has a buffer of its own beside the final volume's
    return copy + buffer * (2 if work.writer == "auto" and ranks > 1 else 1)
