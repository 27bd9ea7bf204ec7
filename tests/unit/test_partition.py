"""Every row has one owner, whatever the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream.errors import ConfigError
from ministream.partition import band, groups, slabs


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


@given(st.data())
def test_groups_of_ranks_receive_bands_that_are_their_slabs(data):
    rows = data.draw(st.integers(1, 500))
    ranks = data.draw(st.integers(1, min(rows, 64)))
    dealt = groups(ranks, data.draw(st.integers(1, ranks)))
    assert [rank for group in dealt for rank in group] == list(range(ranks))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for group in dealt:
        whole, owned = band(rows, ranks, group.start, group.stop), slabs(rows, ranks)
        assert (whole.first, whole.stop) == (owned[group.start].first, owned[group.stop - 1].stop)


def test_more_receiving_ranks_than_ranks_are_refused():
    with pytest.raises(ConfigError, match="--ingress 3: 2 ranks cannot have so many that receive: at most 2"):
        groups(2, 3)
    with pytest.raises(ConfigError, match="are not among 4"):
        band(10, 4, 2, 5)
