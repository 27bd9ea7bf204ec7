"""Corrections of whole projections against TomoPy's definitions, written out slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ministream.errors import InputError
from ministream.model import Frame, FrameKind
from ministream.prep.images import ImageCorrector, Steps

ALL = Steps(normalize=True, minus_log=True, remove_invalids=True)


def frame(kind: FrameKind, index: int, pixels) -> Frame:
    return Frame(kind=kind, index=index, angle_rad=0.0, pixels=np.asarray(pixels), acquired_s=0.0)


def projection(pixels) -> Frame:
    return frame(FrameKind.PROJECTION, 0, pixels)


def test_all_steps_follow_the_definitions() -> None:
    rng = np.random.default_rng(1)
    flats, darks = rng.integers(900, 1100, (3, 4, 5)), rng.integers(0, 20, (2, 4, 5))
    raw = rng.integers(0, 1200, (4, 5)).astype(np.uint16)
    flats[:, 0, 0], darks[:, 0, 0] = 7, 7  # a dead pixel
    corrector = ImageCorrector(ALL)
    for kind, images in ((FrameKind.FLAT, flats), (FrameKind.DARK, darks)):
        for index, image in enumerate(images):
            corrector.add(frame(kind, index, image))
    corrected = corrector.correct(projection(raw))
    assert corrected.dtype == np.float32
    for row in range(4):
        for col in range(5):
            dark = darks[:, row, col].mean()
            transmission = (raw[row, col] - dark) / max(flats[:, row, col].mean() - dark, 1e-6)
            integral = -math.log(transmission) if transmission > 0 else 0.0
            assert corrected[row, col] == pytest.approx(max(integral, 0.0), rel=1e-4, abs=1e-5)


def test_without_steps_the_pixels_pass_as_float32() -> None:
    raw = np.array([[0, 65535]], np.uint16)
    np.testing.assert_array_equal(ImageCorrector(Steps()).correct(projection(raw)), [[0.0, 65535.0]])


def test_invalid_pixels_become_zero() -> None:
    raw = np.float32([[np.nan, np.inf, -np.inf, -1.0, 2.0]])
    corrector = ImageCorrector(Steps(remove_invalids=True))
    np.testing.assert_array_equal(corrector.correct(projection(raw)), [[0, 0, 0, 0, 2]])


def test_a_set_that_starts_again_replaces_the_old_one_and_darks_may_be_absent() -> None:
    corrector = ImageCorrector(Steps(normalize=True))
    corrector.add(frame(FrameKind.FLAT, 0, [[10.0]]))
    corrector.add(frame(FrameKind.FLAT, 1, [[30.0]]))
    assert corrector.correct(projection([[10.0]]))[0, 0] == pytest.approx(0.5)
    corrector.add(frame(FrameKind.FLAT, 0, [[40.0]]))
    assert corrector.correct(projection([[10.0]]))[0, 0] == pytest.approx(0.25)


def test_normalising_without_flats_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="no flat"):
        ImageCorrector(ALL).correct(projection([[1.0]]))
