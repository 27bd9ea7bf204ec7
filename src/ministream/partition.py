"""Partition of detector rows over ranks, and choice of the receiving ranks: pure functions on integers."""

from __future__ import annotations

from ministream.errors import ConfigError
from ministream.model import Slab


def slabs(rows: int, ranks: int) -> tuple[Slab, ...]:
    """Divide `rows` detector rows among `ranks` in contiguous blocks; the first `rows % ranks` have one extra row.

    The distributor of aps-mini-apps uses the same partition. Every rank owns at least one row, because
    a rank without data can hang a collective HDF5 write.

    Raises ConfigError when there are more ranks than rows.
    """
    _check(rows, ranks)
    return tuple(_slab(rows, ranks, rank) for rank in range(ranks))


def band(rows: int, ranks: int, first: int, last: int) -> Slab:
    """The rows of the ranks [first, last) together. Raises ConfigError as `slabs` does, and for an invalid range."""
    _check(rows, ranks)
    if not 0 <= first < last <= ranks:
        raise ConfigError(f"ranks {first} to {last - 1} are not among {ranks}")
    start = _slab(rows, ranks, first).first
    return Slab(start, _slab(rows, ranks, last - 1).stop - start)


def groups(ranks: int, receiving: int) -> tuple[range, ...]:
    """Divide the ranks into `receiving` contiguous groups of nearly equal size; the first rank of each receives.

    Launchers number the ranks node by node, so the receiving ranks are spread over the nodes.

    Raises ConfigError when `receiving` exceeds the number of ranks.
    """
    if not 1 <= receiving <= ranks:
        raise ConfigError(f"--ingress {receiving}: {ranks} ranks cannot have so many that receive: at most {ranks}")
    return tuple(range(group.first, group.stop) for group in slabs(ranks, receiving))


def _check(rows: int, ranks: int) -> None:
    if ranks < 1:
        raise ConfigError(f"the number of ranks must be at least 1, not {ranks}")
    if rows < ranks:
        raise ConfigError(f"{ranks} ranks cannot share {rows} detector rows: start at most {rows} ranks")


def _slab(rows: int, ranks: int, rank: int) -> Slab:
    share, extra = divmod(rows, ranks)
    return Slab(rank * share + min(rank, extra), share + (rank < extra))
