"""The phantom source: geometry, detector and noise, and a ground truth that fits the projections."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest

from ministream import config
from ministream.errors import ConfigError, ProtocolError
from ministream.model import FrameKind, Slab
from ministream.source import open_source, phantom, truth

SAMPLES = ("shepp-logan", "foam")
samples = pytest.mark.parametrize("sample", SAMPLES)


def opened(order="sequential", repeat=1, **options):
    options = {"rows": 6, "cols": 48, "projections": 12, "flats": 2, "darks": 2} | options
    return open_source(config.SourceSection(kind="phantom", **options), order=order, repeat=repeat)


def whole_truth(scan, n=None, at=0.0):
    return truth(scan, Slab(0, scan.rows), n=n or scan.cols, at=at)


def ray_sums(image, angle_rad, axis_col):
    """Slow twin: the slice summed along s with bilinear interpolation, in DESIGN's x, y and u."""
    n = len(image)
    s = np.arange(-n, n, 0.25)
    u = (np.arange(n) - axis_col)[:, None]
    col = u * np.cos(angle_rad) - s * np.sin(angle_rad) + (n - 1) / 2
    row = (n - 1) / 2 - (u * np.sin(angle_rad) + s * np.cos(angle_rad))
    padded = np.pad(image, 1)
    col, row = np.clip(col + 1, 0, n + 0.999), np.clip(row + 1, 0, n + 0.999)
    c, r = col.astype(int), row.astype(int)
    right, down = col - c, row - r
    upper = padded[r, c] * (1 - right) + padded[r, c + 1] * right
    lower = padded[r + 1, c] * (1 - right) + padded[r + 1, c + 1] * right
    return (upper * (1 - down) + lower * down).sum(axis=1) * 0.25


@samples
@pytest.mark.parametrize("axis", [None, 72.0, 56.25])
@pytest.mark.parametrize("cols", [128, 129])
def test_projections_are_ray_sums_of_the_truth(sample, axis, cols):
    source = opened(sample=sample, rows=2, cols=cols, axis=axis)
    volume = whole_truth(source.describe())
    angles = np.deg2rad([0, 33, 90, 130, 180, 222.5, 270, 301])
    exact = np.stack([source.line_integrals(a) for a in angles], axis=1)
    summed = np.stack([[ray_sums(image, a, source.describe().axis_or_middle) for a in angles] for image in volume])
    # An axis wrong by half a pixel gives 0.009 and 0.995 at best.
    assert np.abs(exact - summed).mean() < 0.006 * exact.max()
    assert np.corrcoef(exact.ravel(), summed.ravel())[0, 1] > 0.998


@samples
@pytest.mark.parametrize(("rows", "cols", "axis"), [(1, 1, None), (1, 2, None), (3, 7, 2.0), (2, 33, 0.0)])
def test_any_size_works(sample, rows, cols, axis):
    source = opened(sample=sample, rows=rows, cols=cols, axis=axis, projections=1)
    assert [frame.pixels.shape for frame in source.frames()] == [(rows, cols)] * 5
    assert whole_truth(source.describe()).shape == (rows, cols, cols)


@samples
@pytest.mark.parametrize("cols", [32, 101, 400])
def test_largest_line_integral_is_about_the_absorption_asked_for(sample, cols):
    source = opened(sample=sample, rows=max(1, cols // 4), cols=cols, absorption=2.0)
    largest = max(source.line_integrals(a).max() for a in np.linspace(0, np.pi, 24))
    assert 1.6 < largest < 2.4


@samples
@pytest.mark.parametrize("axis", [None, 75.0, 40.0])
def test_the_sample_stays_on_the_detector(sample, axis):
    """No view is cut off, so every one of a slice's views holds its whole attenuation."""
    source = opened(sample=sample, rows=4, cols=128, axis=axis)
    whole = whole_truth(source.describe()).sum(axis=(1, 2))
    for angle in np.linspace(0, 2 * np.pi, 9):
        np.testing.assert_allclose(source.line_integrals(angle).sum(axis=1), whole, rtol=0.03)


@samples
def test_attenuation_is_nowhere_negative(sample):
    assert whole_truth(opened(sample=sample, rows=32, cols=32).describe()).min() >= -1e-9


def test_foam_depends_on_the_seed_and_the_head_does_not():
    volumes = {(s, seed): whole_truth(opened(sample=s, seed=seed).describe()) for s in SAMPLES for seed in (1, 2)}
    assert not np.array_equal(volumes["foam", 1], volumes["foam", 2])
    np.testing.assert_array_equal(volumes["shepp-logan", 1], volumes["shepp-logan", 2])


def test_foam_is_the_same_on_every_machine():
    """Producer and receiver make the truth from the seed, whatever NumPy each of them runs."""
    volume = whole_truth(opened(sample="foam", rows=3, cols=24, seed=42).describe())
    np.testing.assert_allclose([volume.sum(), volume[1].std()], [69.09349, 0.039577726], rtol=1e-5)


@samples
def test_slabs_of_the_truth_are_parts_of_the_whole(sample):
    scan = opened(sample=sample, rows=7).describe()
    parts = [truth(scan, slab, n=scan.cols, at=0.0) for slab in (Slab(0, 3), Slab(3, 1), Slab(4, 3))]
    assert all(part.dtype == np.float32 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), whole_truth(scan))


def test_flat_and_dark_correction_gives_back_the_line_integrals():
    source = opened(noise=False, dtype="float32", fixed_pattern=0.3)
    dark, flat, view = (source.frame(kind, 0) for kind in (FrameKind.DARK, FrameKind.FLAT, FrameKind.PROJECTION))
    corrected = -np.log((view.pixels - dark.pixels) / (flat.pixels - dark.pixels))
    np.testing.assert_allclose(corrected, source.line_integrals(view.angle_rad), atol=1e-4)
    assert np.ptp(flat.pixels) > 0.2 * flat.pixels.max()
    assert np.ptp(dark.pixels) > 0.2 * dark.pixels.max()


def test_angles_are_those_of_the_order_over_the_range_asked_for():
    views = [f for f in opened(projections=4, range_deg=360.0).frames() if f.kind is FrameKind.PROJECTION]
    np.testing.assert_allclose([f.angle_rad for f in views], np.deg2rad([0, 90, 180, 270]))
    views = [f for f in opened(projections=3, order="golden-angle").frames() if f.kind is FrameKind.PROJECTION]
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in views]), [0, 111.246118, 42.492236])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize(("kind", "level"), [(FrameKind.FLAT, 500.0 + 40.0), (FrameKind.DARK, 40.0)])
def test_noise_is_poisson(kind, level, dtype):
    """Mean and variance both equal the expected counts, within five standard errors."""
    source = opened(rows=100, cols=100, i0=500.0, dark=40.0, fixed_pattern=0.0, dtype=dtype)
    counts = np.stack([source.frame(kind, index).pixels for index in range(10)]).astype(float)
    assert counts.mean() == pytest.approx(level, abs=5 * np.sqrt(level / counts.size))
    assert counts.var() == pytest.approx(level, rel=5 * np.sqrt(2 / counts.size) + 1 / level)
    between_frames = np.corrcoef(counts.reshape(10, -1))[np.triu_indices(10, 1)]
    assert np.abs(between_frames).max() < 5 / 100


def test_a_frame_does_not_depend_on_what_came_before():
    forward = [f.pixels for f in opened(seed=3).frames()]
    source = opened(seed=3)
    places = [
        (kind, i)
        for kind, n in ((FrameKind.DARK, 2), (FrameKind.FLAT, 2), (FrameKind.PROJECTION, 12))
        for i in range(n)
    ]
    backward = [source.frame(kind, index).pixels for kind, index in reversed(places)]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_another_seed_is_other_noise():
    assert not np.array_equal(*(opened(seed=seed).frame(FrameKind.FLAT, 0).pixels for seed in (1, 2)))


def test_repeated_passes_show_the_same_views_with_fresh_noise():
    twice = opened(repeat=2)
    views = [f for f in twice.frames() if f.kind is FrameKind.PROJECTION]
    assert twice.describe().projections == len(views) == 24
    assert [f.index for f in views] == list(range(24))
    assert [f.angle_rad for f in views[:12]] == [f.angle_rad for f in views[12:]]
    assert not np.array_equal(views[0].pixels, views[12].pixels)
    np.testing.assert_array_equal(views[0].pixels, opened().frame(FrameKind.PROJECTION, 0).pixels)


def test_bright_pixels_saturate_and_the_log_says_so(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ministream"), "propagate", True)
    source = opened(i0=70_000.0, fixed_pattern=0.0, noise=False)
    assert np.all(source.frame(FrameKind.FLAT, 0).pixels == 65535)
    assert "pixels saturate at 65535" in caplog.text
    caplog.clear()
    assert opened(i0=70_000.0, fixed_pattern=0.0, noise=False, dtype="float32").frame(
        FrameKind.FLAT, 0
    ).pixels.max() == pytest.approx(70_100)
    assert not caplog.text


def test_scan_describes_what_is_sent():
    scan = opened(axis=20.5, pixel_size_um=0.65, sample="foam").describe()
    assert (scan.rows, scan.cols, scan.projections, scan.flats, scan.darks) == (6, 48, 12, 2, 2)
    assert (scan.dtype, scan.axis_col, scan.pixel_size_um, scan.sample) == ("<u2", 20.5, 0.65, "foam phantom")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": 48.0}, r"axis 48 is outside the detector's columns 0 to 47"),
        ({"axis": float("nan")}, "axis = nan"),
        ({"rows": 0}, "rows = 0"),
        ({"projections": 0}, "projections = 0"),
        ({"cols": 1.5}, "cols = 1.5"),
        ({"sample": "brain"}, "sample = 'brain'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"range_deg": float("inf")}, "range_deg = inf"),
        ({"seed": -1}, "seed = -1"),
        ({"noize": True}, "unknown key noize .did you mean noise"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        opened(**options)


def recipe(**changes):
    known = {"source": "phantom", "sample": "foam", "rows": 6, "cols": 48, "axis": None, "absorption": 2.0, "seed": 0}
    known |= {"shrinkage": 0.0, "fills": "detector"}
    return json.dumps({key: value for key, value in (known | changes).items() if value != "absent"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[1]",
        recipe(rows="6"),
        recipe(cols=48.5),
        recipe(seed="absent"),
        recipe(seed=-1),
        recipe(seed=2**63),
        recipe(axis=float("nan")),
        recipe(axis=100.0),
        recipe(absorption=0),
        recipe(absorption=1e300),
        recipe(sample="brain"),
        recipe(shrinkage="0.1"),
        recipe(shrinkage=1.0),
        recipe(fills="room"),
        recipe(extra=1),
        recipe(source="absent"),
        recipe(source="dxchange"),
        recipe(source="../phantom"),
        recipe(source="os"),
        recipe(cols=47),
        recipe(rows=60_000, cols=60_000),
        recipe(pad="x" * 5000),
    ],
)
def test_a_malformed_recipe_from_the_network_is_refused(text):
    scan = dataclasses.replace(opened().describe(), truth=text)
    with pytest.raises(ProtocolError, match=r"(truth|phantom) recipe"):
        truth(scan, Slab(0, 1), n=48, at=0.0)


@pytest.mark.parametrize("slab", [Slab(0, 7), Slab(6, 1), Slab(-1, 1), Slab(0, 0)])
def test_rows_that_the_recipe_does_not_have_are_refused(slab):
    with pytest.raises(ProtocolError, match="truth recipe has 6 rows"):
        phantom.truth(recipe(), slab, n=48, at=0.0)


def test_no_recipe_is_no_truth():
    assert truth(dataclasses.replace(opened().describe(), truth=None), Slab(0, 1), n=48, at=0.0) is None


def stack(source, kind):
    return np.stack([frame.pixels.astype(float) for frame in source.frames() if frame.kind is kind])


def test_the_beam_drifts_and_flats_before_and_after_see_it():
    quiet = {"noise": False, "fixed_pattern": 0.0, "dark": 0.0, "dtype": "float32", "absorption": 1e-3}
    source = opened(drift=0.2, flats_after=3, **quiet)
    assert source.describe().flats == 5
    flats = [frame for frame in source.frames() if frame.kind is FrameKind.FLAT]
    assert [frame.position for frame in flats] == [0, 0, 12, 12, 12]
    assert [float(frame.pixels[0, 0]) for frame in flats] == pytest.approx([50_000] * 2 + [40_000] * 3)
    views = stack(source, FrameKind.PROJECTION)[:, 0, 0]
    np.testing.assert_allclose(views, 50_000 * (1 - 0.2 * np.arange(12) / 12), rtol=2e-3)


def test_rings_are_columns_that_answer_otherwise_than_in_the_flats():
    quiet = {"noise": False, "dark": 0.0, "dtype": "float32"}
    plain, rings = (stack(opened(rings=share, **quiet), FrameKind.PROJECTION) for share in (0.0, 0.05))
    ratio = rings / plain
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0, 0], ratio.shape), rtol=1e-5)
    assert 0.01 < np.abs(ratio[0, 0] - 1).max() <= 0.05
    before, after = (stack(opened(rings=share, **quiet), FrameKind.FLAT) for share in (0.0, 0.05))
    np.testing.assert_array_equal(before, after)


def test_dead_and_saturated_pixels_are_so_in_every_image():
    source = opened(dead=3, saturated=2)
    for kind in FrameKind:
        images = stack(source, kind)
        assert np.count_nonzero((images == 0).all(axis=0)) == 3
        assert np.count_nonzero((images == 65535).all(axis=0)) == 2


def test_zingers_hit_other_pixels_in_every_image():
    hits = stack(opened(zingers=4.0, projections=50), FrameKind.PROJECTION) == 65535
    assert 2 < hits.sum() / 50 < 6
    assert hits.any(axis=0).sum() > 100
    assert not (stack(opened(zingers=4.0), FrameKind.DARK) == 65535).any()


def test_defects_leave_the_truth_and_the_noise_as_they_are():
    plain, spoiled = opened(), opened(dead=1, drift=0.0)
    np.testing.assert_array_equal(whole_truth(plain.describe()), whole_truth(spoiled.describe()))
    one, other = (stack(source, FrameKind.PROJECTION) for source in (plain, spoiled))
    assert np.count_nonzero((one != other).any(axis=0)) == 1


TURN = {"noise": False, "fixed_pattern": 0.0, "dtype": "float32"}


def test_a_sample_that_shrinks_has_its_truth_at_any_time():
    """The head is an ellipse at its rim: its width scales, its mass stays, its projections are those of the truth."""
    source = opened(rows=2, cols=128, shrinkage=0.4, projections=10)
    scan = source.describe()
    whole = whole_truth(scan).sum(axis=(1, 2))
    for at in (0.0, 0.5, 1.0):
        volume = whole_truth(scan, at=at)
        np.testing.assert_allclose(volume.sum(axis=(1, 2)), whole, rtol=0.01)
        half_width = np.nonzero(volume[0].max(axis=0) > 0)[0]
        assert np.ptp(half_width) + 1 == pytest.approx(2 * 0.69 * 64 * (1 - 0.4 * at) * rim(volume), abs=2)
        exact = source.line_integrals(0.5, at)
        summed = np.stack([ray_sums(image, 0.5, scan.axis_or_middle) for image in volume])
        assert np.abs(exact - summed).mean() < 0.006 * exact.max()
    assert not np.array_equal(whole_truth(scan), whole_truth(scan, at=0.5))


def rim(volume):
    """The head's ellipsoid in the rows next to the middle, relative to its equator."""
    z = 0.5 / (len(volume) / 2)
    return np.sqrt(1 - (z / 0.9) ** 2)


def test_projections_show_the_sample_at_their_time():
    source = opened(shrinkage=0.4, dark=0.0, projections=8, **TURN)
    for frame in source.frames():
        if frame.kind is FrameKind.PROJECTION:
            expected = 50_000 * np.exp(-source.line_integrals(frame.angle_rad, frame.index / 8))
            np.testing.assert_allclose(frame.pixels, expected, rtol=1e-4)


@samples
def test_a_sample_that_fills_the_turn_is_as_wide_as_the_doubled_field(sample):
    source = opened(sample=sample, rows=2, cols=100, axis=15.0, fills="turn", range_deg=360.0)
    n = 2 * 85
    volume = whole_truth(source.describe(), n=n)
    assert np.ptp(np.nonzero(volume[0].max(axis=1) > 0)[0]) > 120, "more than the detector's 100 columns"
    for angle in np.linspace(0, 2 * np.pi, 7):
        seen = source.line_integrals(angle)
        opposite = source.line_integrals(angle + np.pi)
        # the two halves of a line through the sample: column 15 + d is column 15 - d half a turn later
        np.testing.assert_allclose(seen[:, 0:31], opposite[:, 30::-1], atol=1e-9)
        doubled = seen[:, 16:].sum(axis=1) + opposite[:, 16:].sum(axis=1) + seen[:, 15]
        np.testing.assert_allclose(doubled, volume.sum(axis=(1, 2)), rtol=0.03)


@pytest.mark.parametrize("axis", [None, 70.0])
def test_a_tilted_axis_leans_to_larger_columns_at_the_top(axis):
    """The centre of mass of every row of a cylinder about the axis lies on the axis: (middle - row) tan(tilt)."""
    source = opened(sample="foam", rows=41, cols=128, axis=axis, tilt_deg=5.0, seed=3)
    axis_col = source.describe().axis_or_middle
    both = source.line_integrals(0.3) + source.line_integrals(0.3 + np.pi)
    edges = np.array([(np.nonzero(row > 0)[0][[0, -1]]).mean() for row in both])
    expected = axis_col + (20 - np.arange(41)) * np.tan(np.deg2rad(5.0))
    np.testing.assert_allclose(edges, expected, atol=0.6)


@samples
def test_a_tilt_turns_the_picture_about_the_axis_in_the_middle_row(sample):
    """By a right triangle with sides 3, 4 and 5, so that pixels fall on pixels: both axes of the picture."""
    plain = opened(sample=sample, rows=65, cols=65).line_integrals(0.7)
    tilted = opened(sample=sample, rows=65, cols=65, tilt_deg=np.rad2deg(np.arctan2(3, 4))).line_integrals(0.7)
    k = np.arange(-6, 7)
    np.testing.assert_allclose(tilted[32 - 4 * k, 32 + 3 * k], plain[32 - 5 * k, 32], rtol=1e-6)
    np.testing.assert_allclose(tilted[32 + 3 * k, 32 + 4 * k], plain[32, 32 + 5 * k], rtol=1e-6)
