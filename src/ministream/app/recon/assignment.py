"""The values that the configuration leaves open and the scan decides, and the rows of each rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ministream import partition
from ministream.config import Config
from ministream.errors import ConfigError
from ministream.model import Scan, Slab

# Frames that one broadcast announces: enough to amortise it, few enough that a rank's staging stays
# small beside its window.
MAX_BATCH = 16

# An axis that is farther from the middle than this share of the columns is there on purpose.
HALF_ACQUISITION_SHARE = 0.15


def resolve(config: Config, scan: Scan) -> Config:
    """The configuration with the window's open lengths decided by the scan.

    Raises ConfigError when neither says how long the window is.
    """
    length = config.window.length or scan.projections
    if not length:
        raise ConfigError(
            "the scan does not tell its number of projections, and --window-length is 0. Set --window-length."
        )
    if scan.projections:
        length = min(length, scan.projections)
    step = min(config.window.step or length, length)
    window = config.window.model_copy(update={"length": length, "step": step})
    return config.model_copy(update={"window": window})


def axis_of(config: Config, scan: Scan) -> float:
    """The rotation axis column: the user's, else the scan's, else the middle of the detector.

    Raises ConfigError when it lies outside the detector.
    """
    axis = config.recon.axis_col
    axis_col = scan.axis_or_middle if axis is None else axis
    if not 0 <= axis_col <= scan.cols - 1:
        raise ConfigError(
            f"rotation axis {axis_col:g}: expected a detector column from 0 to {scan.cols - 1}. Set --axis."
        )
    return axis_col


def is_half_acquisition(config: Config, scan: Scan, axis_col: float) -> bool:
    """Whether the slices are wider than the detector, which sees the other half of the sample in the other half of a
    turn: as the user says, else where the axis is far from the middle.
    """
    if config.recon.field != "auto":
        return config.recon.field == "half"
    return abs(axis_col - (scan.cols - 1) / 2) > HALF_ACQUISITION_SHARE * scan.cols


def slice_size(config: Config, scan: Scan, axis_col: float) -> int:
    """Rows and columns of a slice.

    Raises ConfigError for a half acquisition that is to be reconstructed by filtered back projection, which would take
    what both halves see twice.
    """
    n = scan.cols
    if is_half_acquisition(config, scan, axis_col):
        if config.recon.kind == "fbp" or config.recon.options.get("seed_fbp"):
            raise ConfigError(
                f"the rotation axis {axis_col:g} is far from the middle of {scan.cols} columns, a half acquisition, "
                "which filtered back projection cannot weight. Use an iterative algorithm, --set recon.kind=sirt "
                "without seed_fbp, or --set recon.field=detector for slices as wide as the detector"
            )
        n = 2 * math.ceil(max(axis_col + 0.5, scan.cols - 0.5 - axis_col))
    return n + 2 * round(config.recon.padding * scan.cols)


def groups_of(config: Config, ranks: int) -> tuple[range, ...]:
    """The groups of ranks that share a receiving rank, the first of each. Raises ConfigError."""
    return partition.groups(ranks, ranks if config.aps.every_rank else config.stream.ingress)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one rank knows before the first frame: the resolved configuration, the scan, and who owns which rows.

    `n`: rows and columns of a slice. `group`: the ranks that share this rank's receiving rank.
    """

    rank: int
    config: Config
    scan: Scan
    slabs: tuple[Slab, ...]
    group: range
    axis_col: float
    n: int
    threads: int

    @property
    def slab(self) -> Slab:
        """This rank's rows."""
        return self.slabs[self.rank]

    @property
    def band(self) -> tuple[Slab, ...]:
        """The slabs of this rank's group, counted in the rows of the frames that its receiving rank receives."""
        first = self.slabs[self.group.start].first
        return tuple(Slab(self.slabs[rank].first - first, self.slabs[rank].rows) for rank in self.group)

    @property
    def batch(self) -> int:
        """The most frames that are sent to the ranks together."""
        return min(MAX_BATCH, self.config.window.step)


def assign(rank: int, ranks: int, config: Config, scan: Scan, threads: int) -> Assignment:
    """Resolve the configuration and assign the rows. Raises ConfigError as `resolve`, `axis_of`, `slice_size`,
    `groups_of` and `slabs` do.
    """
    axis_col = axis_of(config, scan)
    return Assignment(
        rank=rank,
        config=resolve(config, scan),
        scan=scan,
        slabs=partition.slabs(scan.rows, ranks),
        group=next(group for group in groups_of(config, ranks) if rank in group),
        axis_col=axis_col,
        n=slice_size(config, scan, axis_col),
        threads=threads,
    )
