"""Pacing: projections at the rate asked for, calibration at once, no hurry after a pause."""

from __future__ import annotations

import numpy as np
import pytest

from ministream.app.producer.job import paced
from ministream.model import Frame, FrameKind


class Clock:
    """Time that passes only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


def frames(clock, darks, projections, exposure_s=0.0):
    kinds = [FrameKind.DARK] * darks + [FrameKind.PROJECTION] * projections
    for index, kind in enumerate(kinds):
        clock.sleep(exposure_s)
        yield Frame(kind=kind, index=index, angle_rad=0.0, pixels=np.zeros((1, 1)), acquired_s=clock())


def times(clock, acquired, rate, pause_after=None, pause_s=0.0):
    seen = []
    for k, frame in enumerate(paced(acquired, rate, clock=clock, sleep=clock.sleep)):
        seen.append(frame.acquired_s)
        if k == pause_after:
            clock.sleep(pause_s)
    return np.diff(seen)


def test_projections_come_at_the_rate_and_are_acquired_when_due(clock):
    gaps = times(clock, frames(clock, 20, 6), 50.0)
    assert np.allclose(gaps[:20], 0), "calibration is not paced"
    assert np.allclose(gaps[20:], 0.02)


def test_the_exposure_counts_as_part_of_the_period(clock):
    assert np.allclose(times(clock, frames(clock, 0, 6, exposure_s=0.015), 50.0), 0.02)


def test_a_source_slower_than_the_rate_is_not_slowed_further(clock):
    assert np.allclose(times(clock, frames(clock, 0, 6, exposure_s=0.1), 50.0), 0.1)


def test_no_rate_is_no_wait(clock):
    assert np.allclose(times(clock, frames(clock, 1, 50), None), 0)


def test_a_consumer_that_lags_is_not_flooded_afterwards(clock):
    gaps = times(clock, frames(clock, 0, 6), 50.0, pause_after=1, pause_s=0.3)
    assert np.allclose(gaps, [0.02, 0.3, 0.02, 0.02, 0.02])
