"""Resolves the values that the configuration leaves to the scan, and assigns detector rows to ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ministream import partition
from ministream.config import Config
from ministream.errors import ConfigError
from ministream.model import Scan, Slab
from ministream.prep.chain import complete

# Frames per announcing broadcast: enough to amortise the broadcast, few enough that the staging buffer
# of a rank stays small compared with its window.
MAX_BATCH = 16

# A rotation axis farther from the centre than this fraction of the columns indicates a half acquisition.
HALF_ACQUISITION_SHARE = 0.15


def resolve(config: Config, scan: Scan) -> Config:
    """Return the configuration with unset window lengths taken from the scan, and all parameters of its corrections.

    Raises ConfigError when neither defines the window length, and for a wrong parameter.
    """
    length = config.window.length or scan.projections
    if not length:
        raise ConfigError(
            "the scan does not announce its number of projections, and --window-length is 0. Set --window-length."
        )
    if scan.projections:
        length = min(length, scan.projections)
    step = min(config.window.step or length, length)
    window = config.window.model_copy(update={"length": length, "step": step})
    return config.model_copy(update={"window": window, "prep": complete(config.prep)})


def axis_of(config: Config, scan: Scan) -> float:
    """The rotation axis column: from the user, else from the scan, else the centre of the detector.

    Where the axis is found in the projections it is the centre until then.

    Raises ConfigError when it lies outside the detector.
    """
    axis = config.recon.axis_col
    middle = (scan.cols - 1) / 2 if config.recon.finds_axis else scan.axis_or_middle
    axis_col = middle if axis is None else axis
    if not 0 <= axis_col <= scan.cols - 1:
        raise ConfigError(
            f"rotation axis {axis_col:g}: expected a detector column from 0 to {scan.cols - 1}. Set --axis."
        )
    return axis_col


def is_half_acquisition(config: Config, scan: Scan, axis_col: float) -> bool:
    """Whether this is a half acquisition: the slices are wider than the detector, and each half of a 360-degree scan
    records one half of the sample. The user decides; by default, an axis far from the centre means yes.
    """
    if config.recon.field != "auto":
        return config.recon.field == "half"
    return abs(axis_col - (scan.cols - 1) / 2) > HALF_ACQUISITION_SHARE * scan.cols


def slice_size(config: Config, scan: Scan, axis_col: float) -> int:
    """Rows and columns of a slice. A half acquisition whose axis is still to be found may have it at an edge.

    Raises ConfigError for filtered back projection of a half acquisition: it would count the overlap of the two
    halves twice.
    """
    n = scan.cols
    if is_half_acquisition(config, scan, axis_col):
        if config.recon.kind == "fbp" or config.recon.options.get("seed_fbp"):
            raise ConfigError(
                f"the rotation axis {axis_col:g} is far from the middle of {scan.cols} columns, a half acquisition, "
                "which filtered back projection cannot weight. Use an iterative algorithm, --set recon.kind=sirt "
                "without seed_fbp, or --set recon.field=detector for slices as wide as the detector"
            )
        n = 2 * (scan.cols if config.recon.finds_axis else math.ceil(max(axis_col + 0.5, scan.cols - 0.5 - axis_col)))
    return n + 2 * round(config.recon.padding * scan.cols)


def groups_of(config: Config, ranks: int) -> tuple[range, ...]:
    """The groups of ranks that share a receiving rank, the first of each. Raises ConfigError."""
    return partition.groups(ranks, ranks if config.aps.every_rank else config.stream.ingress)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Input of one rank before the first frame: the resolved configuration, the scan, and the row ownership.

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
        """The slabs of this rank's group, in row numbers of the frames that its receiving rank receives."""
        first = self.slabs[self.group.start].first
        return tuple(Slab(self.slabs[rank].first - first, self.slabs[rank].rows) for rank in self.group)

    @property
    def batch(self) -> int:
        """The maximum number of frames per batch sent to the ranks."""
        return min(MAX_BATCH, self.config.window.step)


def assign(rank: int, ranks: int, config: Config, scan: Scan, threads: int) -> Assignment:
    """Resolve the configuration and assign the rows. Raises ConfigError as `resolve`, `axis_of`, `slice_size`,
    `groups_of` and `slabs` do, and for a scan larger than `stream.scan_limit_gib`.
    """
    axis_col = axis_of(config, scan)
    assignment = Assignment(
        rank=rank,
        config=resolve(config, scan),
        scan=scan,
        slabs=partition.slabs(scan.rows, ranks),
        group=next(group for group in groups_of(config, ranks) if rank in group),
        axis_col=axis_col,
        n=slice_size(config, scan, axis_col),
        threads=threads,
    )
    _check_size(assignment)
    return assignment


def _check_size(assignment: Assignment) -> None:
    """A producer's announcement must not make the ranks allocate any amount. Raises ConfigError."""
    scan, n, window = assignment.scan, assignment.n, assignment.config.window
    needed_gib = 4 * scan.rows * (n * n + window.length * scan.cols) / 2**30
    limit_gib = assignment.config.stream.scan_limit_gib
    if needed_gib > limit_gib:
        raise ConfigError(
            f"scan {scan.scan_id}: image ({scan.rows} × {n} × {n}) and window ({window.length} projections) need "
            f"{needed_gib:.4g} GiB, at most {limit_gib:g} GiB are allowed. If the scan is meant, allow it with "
            f"--set stream.scan_limit_gib={math.ceil(needed_gib)}"
        )
