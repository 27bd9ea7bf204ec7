"""Acquisition orders: permutations that cover the range evenly, for any number of views."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream.errors import ConfigError
from ministream.source import _order

COUNTS = st.integers(min_value=1, max_value=400)
ANGLES = st.lists(st.floats(min_value=-720, max_value=720), min_size=1, max_size=200)
orders = pytest.mark.parametrize("order", _order.ORDERS)


@orders
@given(angles=ANGLES)
def test_every_recorded_view_is_played_once(order, angles):
    assert sorted(_order.permutation(order, angles)) == list(range(len(angles)))


@orders
@given(count=COUNTS, range_deg=st.sampled_from([90.0, 180.0, 360.0]))
def test_phantom_angles_are_distinct_and_below_the_range(order, count, range_deg):
    angles = _order.angles(order, count, range_deg)
    assert angles.shape == (count,)
    assert len(np.unique(angles)) == count
    assert angles[0] == 0
    assert angles.min() >= 0
    assert angles.max() < range_deg


@given(count=COUNTS)
def test_interlaced_views_are_the_sequential_ones(count):
    sweep = _order.angles("sequential", count, 180.0)
    np.testing.assert_array_equal(sweep, np.arange(count) * (180.0 / count))
    np.testing.assert_array_equal(np.sort(_order.angles("interlaced", count, 180.0)), sweep)


def test_interlaced_is_the_sampling_of_timbir():
    """With N a multiple of K: view n is n K + B(⌊n K / N⌋ mod K), modulo N (Mohan et al. 2015, eq. 1), for K = 4."""
    reversed_bits = [0, 2, 1, 3]
    n = np.arange(16)
    expected = (n * 4 + np.take(reversed_bits, n * 4 // 16 % 4)) % 16
    np.testing.assert_array_equal(_order.permutation("interlaced", np.arange(16.0)), expected)


@pytest.mark.parametrize("count", [100, 181, 512])
def test_each_interlaced_sweep_covers_the_range(count):
    """The whole point of interlacing: a window far shorter than the scan already spans it."""
    sweeps = 1 << int(np.log2(np.sqrt(count)))
    window = count // sweeps
    angles = _order.angles("interlaced", count, 180.0)
    for start in range(count - window):
        assert largest_gap(angles[start : start + window], 180.0) <= 3 * 180.0 / window


@pytest.mark.parametrize("count", [5, 34, 100, 181])
def test_any_run_of_golden_angles_covers_the_range(count):
    """Three-gap theorem: the gaps of n golden angles lie within a factor φ² of each other, wherever the run starts."""
    angles = _order.angles("golden-angle", 600, 180.0)
    for start in (0, 7, 400):
        assert largest_gap(angles[start : start + count], 180.0) <= 2.62 * 180.0 / count


def largest_gap(angles, turn):
    ascending = np.sort(angles)
    return np.diff(ascending, append=ascending[0] + turn).max()


def test_golden_angles_step_by_the_golden_section():
    np.testing.assert_allclose(_order.angles("golden-angle", 3, 180.0), [0, 111.246118, 42.492236], atol=1e-6)


@given(angles=st.lists(st.integers(0, 359), min_size=2, max_size=60, unique=True))
def test_golden_order_takes_the_nearest_view_left(angles):
    """Against a slow twin that searches all that is left."""
    recorded = np.array(angles, dtype=float)
    turn = np.ptp(recorded) * len(angles) / (len(angles) - 1)
    left = dict(enumerate(recorded - recorded.min()))
    for k, chosen in enumerate(_order.permutation("golden-angle", recorded)):
        wanted = k * (np.sqrt(5) - 1) / 2 * turn
        distance = {i: abs((at - wanted + turn / 2) % turn - turn / 2) for i, at in left.items()}
        assert distance[chosen] <= min(distance.values()) + 1e-9
        del left[chosen]


def test_sequential_keeps_the_order_of_the_recording():
    np.testing.assert_array_equal(_order.permutation("sequential", [3.0, 1.0, 2.0]), [0, 1, 2])


def test_interlaced_goes_by_angle_whatever_the_recording_did():
    shuffled = np.random.default_rng(0).permutation(50).astype(float)
    played = shuffled[_order.permutation("interlaced", shuffled)]
    np.testing.assert_array_equal(played, _order.permutation("interlaced", np.arange(50.0)))


@orders
def test_equal_angles_are_all_played(order):
    assert sorted(_order.permutation(order, np.full(9, 30.0))) == list(range(9))


@pytest.mark.parametrize("call", [lambda: _order.angles("random", 3, 180.0), lambda: _order.permutation("random", [0])])
def test_unknown_order_lists_the_known_ones(call):
    with pytest.raises(ConfigError, match=r"'random'.*sequential, interlaced, golden-angle"):
        call()
