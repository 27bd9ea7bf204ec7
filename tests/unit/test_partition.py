"""Every row has one owner, whatever the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream.errors import ConfigError
from ministream.partition import slabs


@given(st.data())
def test_rows_are_dealt_in_contiguous_blocks_of_nearly_equal_size(data):
    rows = data.draw(st.integers(1, 5000))
    ranks = data.draw(st.integers(1, min(rows, 300)))
    dealt = slabs(rows, ranks)
    assert len(dealt) == ranks
    assert [row for slab in dealt for row in range(slab.first, slab.stop)] == list(range(rows))
    sizes = [slab.rows for slab in dealt]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    assert sizes[-1] >= 1


def test_more_ranks_than_rows_says_how_many_to_start():
    with pytest.raises(ConfigError, match="3 ranks cannot share 2 detector rows: start at most 2"):
        slabs(2, 3)
    with pytest.raises(ConfigError, match="at least 1"):
        slabs(2, 0)
