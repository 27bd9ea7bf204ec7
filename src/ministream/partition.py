"""Which rank owns which detector rows: pure functions on integers."""

from __future__ import annotations

from ministream.errors import ConfigError
from ministream.model import Slab


def slabs(rows: int, ranks: int) -> tuple[Slab, ...]:
    """Deal `rows` detector rows to `ranks` in contiguous blocks, the first `rows % ranks` one row larger.

    This is also how the distributor of aps-mini-apps deals them. Every rank owns at least one row,
    because a rank with nothing to write can hang a collective HDF5 write.

    Raises ConfigError when there are more ranks than rows.
    """
    if ranks < 1:
        raise ConfigError(f"the number of ranks must be at least 1, not {ranks}")
    if rows < ranks:
        raise ConfigError(f"{ranks} ranks cannot share {rows} detector rows: start at most {rows} ranks")
    share, extra = divmod(rows, ranks)
    sizes = [share + (rank < extra) for rank in range(ranks)]
    return tuple(Slab(sum(sizes[:rank]), size) for rank, size in enumerate(sizes))
