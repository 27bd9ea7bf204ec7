"""Scans as they come: each ends right, right with a warning that says what is odd, or refused with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ministream.errors import ConfigError
from tests.odd_scans import (
    ANGLES,
    COLS,
    DARK,
    DEGREES,
    DISKS,
    FLAT,
    ROWS,
    OddScan,
    counts,
    good,
    line_integrals,
    reconstruct,
    truth,
)

GOOD = good()
INTEGRALS = line_integrals(DEGREES)


def flats(level: int, count: int = 5) -> np.ndarray:
    return np.full((count, ROWS, COLS), level, np.uint16)


def assert_right(result: Any) -> None:
    assert result.correlation() > 0.95, result
    for disk in DISKS:
        assert result.level(disk) == pytest.approx(1, abs=0.05)


def test_a_good_scan_is_right_and_nothing_is_said() -> None:
    result = reconstruct(GOOD)
    assert_right(result)
    assert not result.notices
    assert not result.flaw
    assert result.used == ANGLES


def test_radians_taken_as_degrees_are_refused_until_the_unit_is_decided() -> None:
    radians = good(degrees=np.radians(DEGREES))
    refused = reconstruct(radians, stream={"wire": "timage"}).refused
    assert "span 3.11 degrees" in refused
    assert "source.angle_unit=radians" in refused
    decided = reconstruct(radians, stream={"wire": "timage"}, aps={"angle_unit": "degrees"})
    assert "--accept angles-unit" in decided.flaw
    known = reconstruct(radians, stream={"wire": "timage"}, plausibility={"accept": ["angles-unit"]},
                        aps={"angle_unit": "degrees"})  # fmt: skip
    assert not known.flaw
    assert decided.notices["angles-unit"].numbers["span_deg"] == pytest.approx(np.ptp(np.radians(DEGREES)))


@pytest.mark.parametrize("turn", [1, 2])
def test_degrees_taken_as_radians_are_refused_until_the_unit_is_decided(turn: int) -> None:
    degrees = good(degrees=turn * np.degrees(DEGREES), data=INTEGRALS.astype(np.float32), flats=None, darks=None)
    assert "--angle-unit degrees" in reconstruct(degrees, stream={"wire": "tracemq"}).refused
    decided = reconstruct(degrees, stream={"wire": "tracemq"}, aps={"angle_unit": "radians"})
    assert not decided.refused


def test_line_integrals_are_not_logged_twice() -> None:
    logged = good(data=(INTEGRALS - 0.01).astype(np.float32), flats=None, darks=None)
    assert "--set prep.input=transmission" in reconstruct(logged).refused
    assert "--set prep.input=attenuation" in reconstruct(logged, prep={"input": "transmission"}).refused
    assert_right(reconstruct(logged, prep={"input": "attenuation"}))


def test_counts_are_not_taken_for_transmissions() -> None:
    assert "prep.input=counts" in reconstruct(GOOD, prep={"input": "transmission"}).refused


def test_equal_angles_are_refused() -> None:
    refused = reconstruct(good(degrees=np.zeros(ANGLES))).refused
    assert "all 90 angles are the same" in refused
    assert "source.angles={start=0,stop=180}" in refused


@pytest.mark.parametrize("fill", [0, 65535])
@pytest.mark.parametrize("missing", [range(60, 90), (20, 41, 70)], ids=["aborted", "holes"])
def test_projections_that_were_never_written_are_left_out_and_named(fill: int, missing: Any) -> None:
    data = GOOD.data.copy()
    data[list(missing)] = fill
    result = reconstruct(good(data=data))
    assert result.notices["projections-unwritten"].frames == tuple(missing)
    assert result.flaw
    assert result.used == ANGLES - len(missing)
    assert ("angles-gap" in result.notices) == (len(missing) > 3)
    assert result.correlation() > 0.85


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_pixels_that_are_not_finite_are_mended(value: float) -> None:
    data = np.exp(-INTEGRALS).astype(np.float32)
    data[10, 1, 30] = value
    data[:, 2, 5] = value
    result = reconstruct(good(data=data, flats=None, darks=None), prep={"input": "transmission"})
    assert np.isfinite(result.volume).all()
    assert_right(result)


def test_signed_counts_that_should_be_unsigned_are_refused() -> None:
    data = counts(INTEGRALS, flat=40000).view(np.int16)
    flat = flats(40100)
    flat[:, :, 20:] = 30100
    assert "source.unsigned=true" in reconstruct(good(data=data, flats=flat.view(np.int16))).refused


def test_a_flat_taken_without_beam_is_left_out() -> None:
    spoiled = flats(FLAT + DARK, 10)
    spoiled[3] = DARK
    result = reconstruct(good(flats=spoiled))
    assert result.notices["flats-outlier"].frames == (3,)
    assert_right(result)


def test_swapped_flats_and_darks_are_refused() -> None:
    assert "swapped" in reconstruct(good(flats=GOOD.darks, darks=GOOD.flats)).refused


def test_flats_from_before_and_after_follow_the_beam() -> None:
    beam = np.linspace(FLAT, 16000, ANGLES)[:, None, None]
    drifting = {
        "data": counts(INTEGRALS, flat=beam),
        "flats": np.concatenate([flats(FLAT + DARK), flats(16000 + DARK)]),
    }
    result = reconstruct(good(flat_positions=(0.0,) * 5 + (float(ANGLES - 1),) * 5, **drifting))
    assert_right(result)
    assert not result.notices
    alone = reconstruct(good(data=drifting["data"]))
    assert alone.notices["air-not-zero"].numbers["high"] == pytest.approx(np.log(20 / 16), abs=0.02)


def test_blocked_views_are_named() -> None:
    data = GOOD.data.copy()
    data[40:56] = 500
    data[40:56, 0, 0] = 501
    result = reconstruct(good(data=data))
    assert result.notices["views-blocked"].frames == tuple(range(40, 56))
    kept = [k for k in range(ANGLES) if not 40 <= k < 56]
    without = reconstruct(good(data=GOOD.data[kept], degrees=DEGREES[kept]))
    assert without.correlation() > 0.9
    assert set(without.notices) == {"angles-gap"}


def test_angles_that_are_not_finite_are_refused_with_a_list_to_leave_out() -> None:
    degrees = DEGREES.copy()
    degrees[40:56] = np.nan
    degrees[7] = np.nan
    assert "source.exclude=[7,[40,56]]" in reconstruct(good(degrees=degrees)).refused


def test_rows_taken_for_angles_are_noticed() -> None:
    degrees = np.arange(64) * 2.8125
    data = np.ascontiguousarray(counts(line_integrals(degrees, rows=64)).transpose(1, 0, 2))
    same = np.ones((5, 64, COLS), np.uint16)
    swapped = good(data=data, degrees=degrees, flats=(FLAT + DARK) * same, darks=DARK * same)
    assert "rows-disagree" in reconstruct(swapped).notices


def test_a_wrong_axis_is_noticed_and_the_right_one_named() -> None:
    result = reconstruct(good(axis=35.5))
    assert result.notices["axis-off"].numbers["fitted_col"] == pytest.approx(31.5, abs=0.2)
    assert not reconstruct(good(axis=35.5), recon={"axis": 31.5}).notices


def test_angles_in_another_order_are_noticed() -> None:
    shuffled = np.random.default_rng(0).permutation(DEGREES)
    assert "centre-of-mass" in reconstruct(good(degrees=shuffled)).notices


def test_a_strict_run_refuses_what_it_is_not_told_to_accept() -> None:
    wrong = good(axis=35.5)
    refused = reconstruct(wrong, plausibility={"strict": True}).refused
    assert "--accept axis-off" in refused
    accepted = reconstruct(wrong, plausibility={"strict": True, "accept": ["axis-off"]})
    assert not accepted.refused
    assert "axis-off" in accepted.notices


def test_too_many_mended_pixels_make_a_run_incomplete(tmp_path: Path) -> None:
    mask = np.zeros((ROWS, COLS), bool)
    mask[:, 10:14] = True
    np.save(tmp_path / "mask.npy", mask)
    options = {"mask": str(tmp_path / "mask.npy")}
    result = reconstruct(GOOD, prep=options)
    assert result.notices["pixels-mended"].numbers["masked"] == pytest.approx(4 / COLS)
    assert result.flaw
    assert not reconstruct(GOOD, prep=options | {"mended_limit": 0.07}).flaw


WIDE = ((-20.0, 14.0, 24.0, 0.010), (30.0, -22.0, 8.0, 0.030))


@pytest.mark.parametrize("axis", [6.0, 57.0])
def test_a_half_acquisition_gives_the_doubled_field(axis: float) -> None:
    degrees = np.arange(180) * 2.0
    half = good(data=counts(line_integrals(degrees, axis=axis, disks=WIDE)), degrees=degrees, axis=axis)
    result = reconstruct(half)
    whole = line_integrals(DEGREES, cols=116, disks=WIDE)
    same = np.ones((5, ROWS, 116), np.uint16)
    full = good(data=counts(whole), flats=(FLAT + DARK) * same, darks=DARK * same)
    assert result.volume is not None
    assert result.volume.shape == (ROWS, 116, 116)
    assert not result.notices
    expected = truth(116, WIDE)
    assert result.correlation(expected) > reconstruct(full).correlation(expected) - 0.01
    for disk in WIDE:
        assert result.level(disk, 116) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("axis", "column"), [(6.0, "0"), (57.0, "63")])
def test_a_half_acquisition_whose_axis_nobody_says_is_refused(axis: float, column: str) -> None:
    degrees = np.arange(180) * 2.0
    data = counts(line_integrals(degrees, axis=axis, disks=WIDE))
    refused = reconstruct(good(data=data, degrees=degrees)).refused
    assert f"near column {column}. Set the axis with --set recon.axis=COLUMN; --set recon.axis=31.5 if" in refused
    insisted = reconstruct(good(data=data, degrees=degrees), recon={"axis": 31.5})
    assert set(insisted.notices) == {"sample-truncated"}


def test_a_sample_that_is_cut_on_both_sides_of_a_full_turn_is_no_half_acquisition() -> None:
    degrees = np.arange(180) * 2.0
    wide = ((9.0, 0.0, 30.0, 0.005),)
    result = reconstruct(good(data=counts(line_integrals(degrees, disks=wide)), degrees=degrees))
    assert set(result.notices) == {"sample-truncated"}


def test_a_half_acquisition_of_half_a_turn_is_noticed() -> None:
    short = good(data=counts(line_integrals(DEGREES, axis=6.0, disks=WIDE)), axis=6.0)
    assert reconstruct(short).notices["half-acquisition-short"].numbers["span_deg"] == pytest.approx(178)


def test_filtered_back_projection_refuses_a_half_acquisition() -> None:
    with pytest.raises(ConfigError, match=r"recon\.kind=sirt"):
        reconstruct(good(axis=6.0), recon={"kind": "fbp"})
    assert reconstruct(good(axis=6.0), recon={"kind": "fbp", "field": "detector"}).volume is not None


def test_a_sample_wider_than_the_detector_is_noticed_and_padding_takes_the_glow_from_its_rim() -> None:
    wide = ((2.0, 0.0, 45.0, 0.005), (14.0, -10.0, 6.0, 0.020))
    cut = good(data=counts(line_integrals(DEGREES, disks=wide)))
    plain, padded = reconstruct(cut), reconstruct(cut, recon={"padding": 0.125})
    assert plain.notices["sample-truncated"].numbers["share"] == 1
    assert plain.volume is not None
    assert padded.volume is not None
    assert padded.volume.shape == (ROWS, COLS + 16, COLS + 16)
    axis = np.arange(COLS) - (COLS - 1) / 2
    distance = np.hypot(axis[:, None], axis)
    rim = (distance > 28) & (distance < 31.5)
    expected = truth(disks=wide)[rim].mean()
    glow = abs(plain.volume[:, rim].mean() - expected)
    assert glow > 0.2 * expected
    assert abs(padded.volume[:, 8:-8, 8:-8][:, rim].mean() - expected) < 0.3 * glow


# faults that each leave a complete image of every projection, and a wrong volume


TALL = 32


def noisy(integrals: np.ndarray) -> np.ndarray:
    """Counts with photon noise."""
    return np.random.default_rng(0).poisson(counts(integrals)).astype(np.uint16)


def tall(**changes: Any) -> OddScan:
    """A scan of 32 rows with photon noise, of which the gate measures 4."""
    air = np.zeros((10, TALL, COLS))
    facts = {"data": noisy(line_integrals(DEGREES, rows=TALL)), "flats": noisy(air), "darks": noisy(air + 99)}
    return good(**facts | changes)


def test_a_noisy_scan_is_right_and_nothing_is_said() -> None:
    result = reconstruct(tall())
    assert result.notices == {}
    assert result.correlation() > 0.95


@pytest.mark.parametrize("fill", [0, 100, 4095, 65535])
@pytest.mark.parametrize("frames", [[45], range(60, 90)], ids=["one", "many"])
def test_rows_that_were_never_written_make_a_run_incomplete(fill: int, frames: Any) -> None:
    scan = tall()
    scan.data[np.ix_(list(frames), [29, 30, 31])] = fill
    result = reconstruct(scan)
    assert list(result.notices) == ["rows-unwritten"]
    assert result.notices["rows-unwritten"].numbers == {"frames": len(frames), "rows": 3}
    named = "[45]" if len(frames) == 1 else "[[60,90]]"
    assert f"Exclude them with --set source.exclude={named}" in result.flaw
    kept = [k for k in range(ANGLES) if k not in frames]
    assert reconstruct(tall(data=scan.data[kept], degrees=DEGREES[kept])).flaw == ""
    assert reconstruct(scan, plausibility={"accept": ["rows-unwritten"]}).flaw == ""


def test_images_that_a_detector_repeats_are_named() -> None:
    scan = tall()
    scan.data[30:45] = scan.data[29]
    notice = reconstruct(scan).notices["projections-repeated"]
    assert notice.frames == tuple(range(30, 45))
    assert "--set source.exclude=[[30,45]]" in notice.text


def test_a_sample_that_looks_the_same_from_all_sides_repeats_nothing() -> None:
    centred = counts(line_integrals(DEGREES, disks=((0.0, 0.0, 12.0, 0.02),)))
    assert reconstruct(good(data=centred)).notices == {}


@pytest.mark.parametrize(
    "said",
    [DEGREES * 2, DEGREES * 1.5, np.r_[DEGREES[:30], DEGREES[30:60][::-1], DEGREES[60:]]],
    ids=["twice", "one and a half", "a third in reverse"],
)
def test_angles_that_the_width_of_the_sample_contradicts_are_noticed(said: np.ndarray) -> None:
    """The centre of mass of this sample is near the axis, and hardly moves."""
    codes = set(reconstruct(tall(degrees=said)).notices)
    assert codes & {"second-moment", "centre-of-mass"}


def test_projections_that_are_missing_in_the_middle_are_noticed() -> None:
    data = noisy(line_integrals(np.r_[DEGREES[:40], DEGREES[40:] + 10.0], rows=TALL))
    assert list(reconstruct(tall(data=data)).notices) == ["second-moment"]


def test_flats_that_show_the_sample_are_noticed() -> None:
    assert "transmission-above-1" in reconstruct(tall(flats=tall().data[:10])).notices


def test_noise_alone_is_not_brighter_than_the_flat() -> None:
    """A twentieth of the pixels of air exceeds the flat by more than 10 %."""
    few = np.random.default_rng(0).poisson(300 * np.exp(-line_integrals(DEGREES, rows=TALL))).astype(np.uint16)
    flats = np.random.default_rng(1).poisson(300, (50, TALL, COLS)).astype(np.uint16)
    assert reconstruct(good(data=few, flats=flats, darks=None)).notices == {}


def test_angles_in_another_order_are_noticed_where_the_sample_is_cut() -> None:
    """In a half acquisition neither total nor moments are constant, but they change slowly."""
    degrees = np.arange(180) * 2.0
    data = noisy(line_integrals(degrees, axis=6.0, disks=WIDE))
    shuffled = np.random.default_rng(0).permutation(degrees)
    assert reconstruct(good(data=data, degrees=degrees, axis=6.0)).notices == {}
    assert list(reconstruct(good(data=data, degrees=shuffled, axis=6.0)).notices) == ["angles-order"]
    golden = (np.arange(180) * 222.4922) % 360
    data = noisy(line_integrals(golden, axis=6.0, disks=WIDE))
    assert reconstruct(good(data=data, degrees=golden, axis=6.0)).notices == {}
