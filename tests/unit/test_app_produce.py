"""Pacing: projections at the rate asked for, calibration at once, no hurry after a pause."""

from __future__ import annotations

import time

import numpy as np

from ministream.app.produce import paced
from ministream.model import Frame, FrameKind


def frames(darks, projections):
    kinds = [FrameKind.DARK] * darks + [FrameKind.PROJECTION] * projections
    for index, kind in enumerate(kinds):
        yield Frame(kind=kind, index=index, angle_rad=0.0, pixels=np.zeros((1, 1)), acquired_s=time.monotonic())


def test_projections_come_at_the_rate_and_are_acquired_when_due():
    times = [frame.acquired_s for frame in paced(frames(20, 6), 50.0)]
    assert times[20] - times[0] < 0.02, "calibration is not paced"
    gaps = np.diff(times[20:])
    assert abs(gaps.mean() - 0.02) < 0.005


def test_no_rate_is_no_wait():
    started = time.monotonic()
    assert len(list(paced(frames(1, 500), None))) == 501
    assert time.monotonic() - started < 0.5


def test_a_consumer_that_lags_is_not_flooded_afterwards():
    times = []
    for k, frame in enumerate(paced(frames(0, 6), 50.0)):
        times.append(frame.acquired_s)
        if k == 1:
            time.sleep(0.3)
    assert np.diff(times[2:]).min() > 0.01
