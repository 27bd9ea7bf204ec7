"""Corrections: counts in, line integrals out, transposed, with bad pixels repaired and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ministream.config import PrepSection
from ministream.errors import InputError
from ministream.model import FrameKind
from ministream.prep.corrections import MIN_TRANSMISSION, Corrector

ROWS, COLS = 19, 23


def corrector(**options: bool) -> Corrector:
    return Corrector(rows=ROWS, cols=COLS, options=PrepSection(**options))


def frames(count: int, level: float, dtype: Any = np.uint16, seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [(level + rng.integers(0, 20, (ROWS, COLS))).astype(dtype) for _ in range(count)]


def correct(device: Corrector, raw: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    out = np.zeros((COLS, 32), np.float32)
    repaired = device.correct(raw, out)
    assert not out[:, ROWS:].any(), "the padding stays zero"
    return out[:, :ROWS].T, repaired


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32, np.dtype(">u2")])
def test_line_integrals_from_any_dtype(dtype: Any) -> None:
    device = corrector()
    flats, darks, (raw,) = frames(4, 180, dtype), frames(3, 2, dtype, 1), frames(1, 90, dtype, 2)
    for dark in darks:
        device.add(FrameKind.DARK, dark)
    for flat in flats:
        device.add(FrameKind.FLAT, flat)
    d, f = np.mean(darks, axis=0), np.mean(flats, axis=0)
    result, repaired = correct(device, raw)
    np.testing.assert_allclose(result, -np.log((raw.astype(float) - d) / (f - d)), rtol=2e-6, atol=2e-6)
    assert repaired == 0


def test_a_new_set_replaces_the_old() -> None:
    device = corrector(minus_log=False)
    device.add(FrameKind.DARK, np.full((ROWS, COLS), 10, np.uint16))
    for level in (100, 120):
        device.add(FrameKind.FLAT, np.full((ROWS, COLS), level, np.uint16))
    raw = np.full((ROWS, COLS), 60, np.uint16)
    assert correct(device, raw)[0] == pytest.approx(50 / 100)
    for level in (205, 215):
        device.add(FrameKind.FLAT, np.full((ROWS, COLS), level, np.uint16))
    assert correct(device, raw)[0] == pytest.approx(50 / 200), "new flats, old darks"
    device.add(FrameKind.DARK, np.full((ROWS, COLS), 50, np.uint16))
    assert correct(device, raw)[0] == pytest.approx(10 / 160), "new darks, old flats"


def test_darks_may_be_missing() -> None:
    device = corrector()
    device.add(FrameKind.FLAT, np.full((ROWS, COLS), 100, np.uint16))
    assert correct(device, np.full((ROWS, COLS), 50, np.uint16))[0] == pytest.approx(np.log(2))


def test_starved_pixels_are_clamped_and_counted() -> None:
    device = corrector()
    device.add(FrameKind.DARK, np.full((ROWS, COLS), 10, np.uint16))
    device.add(FrameKind.FLAT, np.full((ROWS, COLS), 110, np.uint16))
    raw = np.full((ROWS, COLS), 60, np.uint16)
    raw[3, 4], raw[5, 6] = 10, 2
    result, repaired = correct(device, raw)
    assert repaired == 2
    assert result[3, 4] == result[5, 6] == pytest.approx(-np.log(MIN_TRANSMISSION))


def test_dead_pixels_are_interpolated_along_the_row() -> None:
    device = corrector()
    flat = np.full((ROWS, COLS), 1000.0, np.float32)
    dead = [(0, 0), (1, 5), (1, 6), (2, COLS - 1)]
    for row, col in dead:
        flat[row, col] = 0
    flat[7] = 0
    device.add(FrameKind.FLAT, flat)
    ramp = np.exp(-np.tile(np.linspace(1, 2, COLS), (ROWS, 1))).astype(np.float32) * 1000
    result, repaired = correct(device, ramp)
    expected = np.tile(np.linspace(1, 2, COLS), (ROWS, 1))
    expected[0, 0], expected[2, -1], expected[7] = expected[0, 1], expected[2, -2], 0
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert repaired == len(dead) + COLS


@pytest.mark.parametrize(("flat", "dark"), [(0, 0), (10, 100)])
def test_a_flat_no_brighter_than_the_dark_is_refused(flat: int, dark: int) -> None:
    device = corrector()
    device.add(FrameKind.FLAT, np.full((ROWS, COLS), flat, np.uint16))
    device.add(FrameKind.DARK, np.full((ROWS, COLS), dark, np.uint16))
    with pytest.raises(InputError, match="not brighter than the dark field"):
        correct(device, np.full((ROWS, COLS), 5, np.uint16))


def test_missing_flats_are_named_with_the_remedy() -> None:
    with pytest.raises(InputError, match="flat_dark = false"):
        correct(corrector(), np.ones((ROWS, COLS), np.float32))


def test_transmissions_and_line_integrals_pass_as_told() -> None:
    data = np.random.default_rng(0).uniform(0.1, 1, (ROWS, COLS)).astype(np.float32)
    transmissions, _ = correct(corrector(flat_dark=False), data)
    np.testing.assert_allclose(transmissions, -np.log(data), rtol=1e-6)
    data[0, 0] = -0.5
    integrals, repaired = correct(corrector(flat_dark=False, minus_log=False), data)
    np.testing.assert_array_equal(integrals, data)
    assert repaired == 0
