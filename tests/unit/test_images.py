"""Corrections of whole projections against TomoPy's definitions, written out slowly."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind
from ministream.prep.images import ImageCorrector, Steps

ALL = Steps(normalize=True, minus_log=True, remove_invalids=True)


def frame(kind: FrameKind, index: int, pixels) -> Frame:
    return Frame(kind=kind, index=index, angle_rad=0.0, pixels=np.asarray(pixels), acquired_s=0.0)


def projection(pixels) -> Frame:
    return frame(FrameKind.PROJECTION, 0, pixels)


def corrected_by(corrector: ImageCorrector, pixels) -> np.ndarray:
    ((_, corrected),) = corrector.correct(projection(pixels))
    return corrected


def test_all_steps_follow_the_definitions() -> None:
    rng = np.random.default_rng(1)
    flats, darks = rng.integers(900, 1100, (3, 4, 5)), rng.integers(0, 20, (2, 4, 5))
    raw = rng.integers(0, 1200, (4, 5)).astype(np.uint16)
    flats[:, 0, 0], darks[:, 0, 0] = 7, 7  # a dead pixel
    corrector = ImageCorrector(ALL)
    for kind, images in ((FrameKind.FLAT, flats), (FrameKind.DARK, darks)):
        for index, image in enumerate(images):
            corrector.add(frame(kind, index, image))
    corrected = corrected_by(corrector, raw)
    assert corrected.dtype == np.float32
    for row in range(4):
        for col in range(5):
            dark = darks[:, row, col].mean()
            transmission = (raw[row, col] - dark) / max(flats[:, row, col].mean() - dark, 1e-6)
            integral = -math.log(transmission) if transmission > 0 else 0.0
            assert corrected[row, col] == pytest.approx(max(integral, 0.0), rel=1e-4, abs=1e-5)


def test_without_steps_the_pixels_pass_as_float32() -> None:
    raw = np.array([[0, 65535]], np.uint16)
    np.testing.assert_array_equal(corrected_by(ImageCorrector(Steps()), raw), [[0.0, 65535.0]])


def test_invalid_pixels_become_zero() -> None:
    raw = np.float32([[np.nan, np.inf, -np.inf, -1.0, 2.0]])
    corrector = ImageCorrector(Steps(remove_invalids=True))
    np.testing.assert_array_equal(corrected_by(corrector, raw), [[0, 0, 0, 0, 2]])


def test_a_set_that_starts_again_replaces_the_old_one_and_darks_may_be_absent() -> None:
    corrector = ImageCorrector(Steps(normalize=True))
    corrector.add(frame(FrameKind.FLAT, 0, [[10.0]]))
    corrector.add(frame(FrameKind.FLAT, 1, [[30.0]]))
    assert corrected_by(corrector, [[10.0]])[0, 0] == pytest.approx(0.5)
    corrector.add(frame(FrameKind.FLAT, 0, [[40.0]]))
    assert corrected_by(corrector, [[10.0]])[0, 0] == pytest.approx(0.25)


def test_normalising_without_flats_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="no flat"):
        ImageCorrector(ALL).correct(projection([[1.0]]))


def test_stripes_are_removed_from_projections_together() -> None:
    rng = np.random.default_rng(2)
    theta = np.linspace(0, np.pi, 100)[:, None, None]
    cols = np.arange(256)
    sample = np.exp(-(((cols - 128 - 60 * np.cos(theta)) / 20) ** 2)) + np.zeros((1, 3, 1))
    stripes = np.zeros((3, 256), np.float32)
    stripes[:, rng.integers(0, 256, 12)] = rng.uniform(-0.2, 0.2, (3, 12))
    corrector = ImageCorrector(Steps(remove_stripes=64))
    counts, cleaned = [], []
    for pixels in sample + stripes:
        found = corrector.correct(projection(pixels))
        counts.append(len(found))
        cleaned += found
    cleaned += corrector.rest()
    assert [count for count in counts if count] == [64]
    assert len(cleaned) == 100
    left = np.array([pixels for _, pixels in cleaned]) - sample
    assert np.sqrt((left**2).mean()) < 0.6 * np.sqrt((stripes**2).mean())
    assert not corrector.rest()


def test_stripes_come_before_the_logarithm_and_frames_keep_their_order() -> None:
    corrector = ImageCorrector(Steps(remove_stripes=2, minus_log=True))
    pixels = np.full((2, 64), np.exp(-1.0))
    assert not corrector.correct(frame(FrameKind.PROJECTION, 0, pixels))
    first, second = corrector.correct(frame(FrameKind.PROJECTION, 1, pixels))
    assert [first[0].index, second[0].index] == [0, 1]
    np.testing.assert_allclose(second[1], 1.0, rtol=1e-4)


def test_stripes_without_the_package_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "algotom", None)
    monkeypatch.setitem(sys.modules, "algotom.prep.removal", None)
    with pytest.raises(ConfigError, match=r"ministream\[stripes\]"):
        ImageCorrector(Steps(remove_stripes=8))
