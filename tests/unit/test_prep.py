"""Corrections: counts in, line integrals out, transposed, with bad pixels repaired and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ministream.config import PrepSection
from ministream.errors import InputError
from ministream.model import FrameKind
from ministream.prep.corrections import MIN_TRANSMISSION, Corrector, Mended

ROWS, COLS = 19, 23


def corrector(mask: NDArray[np.bool_] | None = None, **options: Any) -> Corrector:
    return Corrector(rows=ROWS, cols=COLS, options=PrepSection(**options), mask=mask)


def frames(count: int, level: float, dtype: Any = np.uint16, seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [(level + rng.integers(0, 20, (ROWS, COLS))).astype(dtype) for _ in range(count)]


def correct(device: Corrector, raw: NDArray[Any], position: float = 0.0) -> tuple[NDArray[np.float32], Mended]:
    out = np.zeros((COLS, 32), np.float32)
    mended = device.correct(raw, out, position)
    assert not out[:, ROWS:].any(), "the padding stays zero"
    return out[:, :ROWS].T, mended


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32, np.dtype(">u2")])
def test_line_integrals_from_any_dtype(dtype: Any) -> None:
    device = corrector()
    flats, darks, (raw,) = frames(4, 180, dtype), frames(3, 2, dtype, 1), frames(1, 90, dtype, 2)
    for dark in darks:
        device.add(FrameKind.DARK, dark)
    for flat in flats:
        device.add(FrameKind.FLAT, flat)
    d, f = np.mean(darks, axis=0), np.mean(flats, axis=0)
    result, mended = correct(device, raw)
    np.testing.assert_allclose(result, -np.log((raw.astype(float) - d) / (f - d)), rtol=2e-6, atol=2e-6)
    assert mended == Mended()


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
    result, mended = correct(device, raw)
    assert mended == Mended(starved=2)
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
    result, mended = correct(device, ramp)
    expected = np.tile(np.linspace(1, 2, COLS), (ROWS, 1))
    expected[0, 0], expected[2, -1], expected[7] = expected[0, 1], expected[2, -2], 0
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert mended == Mended(dead=len(dead) + COLS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_invalid_pixels_are_interpolated_along_the_row(value: float) -> None:
    device = corrector(input="transmission")
    ramp = np.exp(-np.tile(np.linspace(1, 2, COLS), (ROWS, 1))).astype(np.float32)
    spoiled = ramp.copy()
    spoiled[2, 5], spoiled[4, :3] = value, value
    result, mended = correct(device, spoiled)
    expected = -np.log(ramp)
    expected[4, :3] = expected[4, 3]
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert mended == Mended(invalid=4)


def test_hot_and_masked_pixels_are_interpolated_and_counted_apart() -> None:
    mask = np.zeros((ROWS, COLS), bool)
    mask[1, 2:4] = True
    device = corrector(mask)
    dark, flat = np.full((ROWS, COLS), 100, np.uint16), np.full((ROWS, COLS), 1100, np.uint16)
    dark[3, 7], flat[3, 7] = 60000, 61000
    device.add(FrameKind.DARK, dark)
    device.add(FrameKind.FLAT, flat)
    raw = np.full((ROWS, COLS), 600, np.uint16)
    raw[1, 2], raw[3, 7] = 0, 65000
    result, mended = correct(device, raw)
    np.testing.assert_allclose(result, np.log(2), rtol=1e-6)
    assert mended == Mended(hot=1, masked=2)


def test_the_flat_is_interpolated_between_sets() -> None:
    device = corrector(minus_log=False)
    device.add(FrameKind.DARK, np.full((ROWS, COLS), 100, np.uint16))
    for position, level in ((0, 20100), (0, 20100), (90, 16100), (150, 10100)):
        device.add(FrameKind.FLAT, np.full((ROWS, COLS), level, np.uint16), position)
    for position, beam in ((0, 20000), (45, 18000), (90, 16000), (120, 13000), (200, 10000)):
        raw = np.full((ROWS, COLS), 100 + beam // 4, np.uint16)
        assert correct(device, raw, position)[0] == pytest.approx(0.25, rel=1e-6)


def test_frames_that_are_left_out_take_no_part() -> None:
    device = corrector(minus_log=False)
    for level in (100, 5, 100):
        device.add(FrameKind.FLAT, np.full((ROWS, COLS), level, np.uint16))
    device.settle({FrameKind.FLAT: frozenset({1})})
    assert correct(device, np.full((ROWS, COLS), 50, np.uint16))[0] == pytest.approx(0.5)


def test_the_measures_are_those_of_the_sampled_rows() -> None:
    device = corrector()
    device.add(FrameKind.FLAT, np.full((ROWS, COLS), 60000, np.uint16))
    (raw,) = frames(1, 30000)
    raw[:, [3, 9]] = 65535
    result, _ = correct(device, raw)
    u = np.arange(COLS) - (COLS - 1) / 2
    for row, measures in zip(device.sampled, device.measures, strict=True):
        line = result[row].astype(float)
        expected = [line.sum(), (line * u).sum(), line[0], line[-1], 0, 2, (line * u**2).sum()]
        np.testing.assert_allclose(measures, expected, rtol=1e-4, atol=1e-4)
    assert device.sampled.size == 4


@pytest.mark.parametrize("steps", [(), ("zingers",)])
@pytest.mark.parametrize(
    ("dtype", "values", "blank"),
    [
        (np.uint16, [0, 20000], 2),
        (np.uint16, [50000, 65535], 1),  # air without noise, and a fill value
        (np.float32, [np.nan, np.inf], 2),
        (np.float32, [3e38, 50100], 1),
    ],
)
def test_rows_of_one_value_that_is_not_the_beams_are_counted(
    dtype: Any, values: list[float], blank: int, steps: tuple[str, ...]
) -> None:
    device = corrector(steps=steps)
    flat = np.full((ROWS, COLS), 50000, np.uint16)
    flat[0] = 0  # a row of dead pixels
    device.add(FrameKind.FLAT, flat)
    raw = frames(1, 30000)[0].astype(dtype)
    raw[0], raw[1], raw[-1] = 0, *values
    correct(device, raw)
    assert device.blank_rows == blank
    raw[[1, -1], 0] = 100
    correct(device, raw)
    assert device.blank_rows == 0


@pytest.mark.parametrize("values", [(np.nan, 100), (20000, np.nan), (np.inf, 100)])
def test_calibration_without_a_finite_pixel_is_refused(values: tuple[float, float]) -> None:
    device = corrector()
    for kind, value in zip((FrameKind.FLAT, FrameKind.DARK), values, strict=True):
        device.add(kind, np.full((ROWS, COLS), value, np.float32))
    with pytest.raises(InputError, match=r"not brighter than the dark field in .*median (flat|dark) nan"):
        device.settle()


@pytest.mark.parametrize(("flat", "dark"), [(0, 0), (10, 100)])
def test_a_flat_no_brighter_than_the_dark_is_refused(flat: int, dark: int) -> None:
    device = corrector()
    device.add(FrameKind.FLAT, np.full((ROWS, COLS), flat, np.uint16))
    device.add(FrameKind.DARK, np.full((ROWS, COLS), dark, np.uint16))
    with pytest.raises(InputError, match="not brighter than the dark field"):
        correct(device, np.full((ROWS, COLS), 5, np.uint16))


def test_missing_flats_are_named_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"prep\.input=transmission"):
        correct(corrector(), np.ones((ROWS, COLS), np.float32))


def test_transmissions_and_line_integrals_pass_as_told() -> None:
    data = np.random.default_rng(0).uniform(0.1, 1, (ROWS, COLS)).astype(np.float32)
    transmissions, _ = correct(corrector(flat_dark=False), data)
    np.testing.assert_allclose(transmissions, -np.log(data), rtol=1e-6)
    data[0, 0] = -0.5
    for options in ({"flat_dark": False, "minus_log": False}, {"input": "attenuation"}):
        integrals, mended = correct(corrector(**options), data)
        np.testing.assert_array_equal(integrals, data)
        assert mended == Mended()


def test_one_setting_says_what_the_pixels_are() -> None:
    assert PrepSection(input="attenuation") == PrepSection(input="attenuation", flat_dark=False, minus_log=False)
    with pytest.raises(ValueError, match="leave minus_log out"):
        PrepSection(input="attenuation", minus_log=True)
