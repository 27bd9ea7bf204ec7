"""The sliding window: what is held, what is due, and where the next projection goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream.recon.window import Window


def fill(window: Window, index: int) -> None:
    window.slot(index, 0.1 * index)[:] = index


def held(window: Window) -> list[int]:
    return sorted(int(value) for value in window.data[: window.held, 0, 0])


def test_the_first_update_is_due_before_the_window_is_full() -> None:
    window = Window(length=6, step=2, cols=3, slices=1)
    fill(window, 0)
    assert (window.held, window.due) == (1, False)
    fill(window, 1)
    assert (window.held, window.due) == (2, True)
    window.updated()
    assert (window.fresh, window.due) == (0, False)


def test_the_oldest_leaves_when_full() -> None:
    window = Window(length=3, step=1, cols=2, slices=1)
    for index in range(5):
        fill(window, index)
    assert held(window) == [2, 3, 4]
    assert sorted(window.indices) == [2, 3, 4]
    assert np.allclose(sorted(window.angles_rad), [0.2, 0.3, 0.4])


def test_a_repeated_projection_replaces_itself_and_is_not_new() -> None:
    window = Window(length=3, step=3, cols=2, slices=1)
    for index in (0, 1, 0):
        fill(window, index)
    assert (window.held, window.fresh) == (2, 2)
    before = window.stamps.copy()
    window.slot(1, 0.7)[:] = 9
    assert held(window) == [0, 9]
    assert window.angles_rad[1] == 0.7
    assert (window.stamps != before).tolist() == [False, True]


def test_late_and_missing_projections_are_normal() -> None:
    window = Window(length=3, step=2, cols=2, slices=1)
    for index in (0, 5, 3, 9):
        fill(window, index)
    assert held(window) == [3, 5, 9]


def test_an_index_that_left_may_come_back_as_new() -> None:
    window = Window(length=2, step=1, cols=2, slices=1)
    for index in (0, 1, 2, 0):
        fill(window, index)
    assert held(window) == [0, 2]
    assert window.fresh == 4


def test_slices_are_padded_and_aligned() -> None:
    window = Window(length=2, step=1, cols=5, slices=17)
    assert window.data.shape == (2, 5, 32)
    assert window.data.ctypes.data % 64 == 0
    assert not window.data.any()


@pytest.mark.parametrize(("length", "step"), [(4, 5), (4, 0), (0, 0)])
def test_a_step_that_would_skip_projections_is_refused(length: int, step: int) -> None:
    with pytest.raises(ValueError, match="step"):
        Window(length=length, step=step, cols=2, slices=1)


@given(st.integers(1, 5), st.lists(st.integers(0, 8), max_size=30))
def test_it_holds_the_last_distinct_arrivals(length: int, indices: list[int]) -> None:
    window = Window(length=length, step=1, cols=1, slices=1)
    model: list[int] = []
    for index in indices:
        fill(window, index)
        if index not in model:
            model = [*model, index][-length:]
    assert held(window) == sorted(model)
    assert len(set(window.stamps.tolist())) == window.held


def test_projections_that_leave_before_an_update_are_missed() -> None:
    window = Window(length=3, step=1, cols=1, slices=1)
    for index in range(5):
        fill(window, index)
    assert (window.fresh, window.missed) == (5, 2)
    window.updated()
    fill(window, 5)
    assert (window.fresh, window.missed) == (1, 0)
