"""The rotation axis from the projections: as exact as a person could tell, or a refusal that says why."""

from __future__ import annotations

import functools
import re
import threading

import h5py
import numpy as np
import pytest

from ministream import config
from ministream.app.recon.assignment import assign
from ministream.app.recon.axis_follower import AxisFollower
from ministream.axis import AxisEstimate, Undecided, finder
from ministream.axis.directions import half_turn, mirror_pairs
from ministream.axis.sinograms import MOST_PROJECTIONS, SampledSinograms, sampled_rows
from ministream.errors import InputError
from ministream.model import FrameKind, Scan
from ministream.parallel import mpi
from ministream.parallel.row_scatter import SlabFrame
from ministream.recon import open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.source import phantom
from ministream.state import bare

ROWS, COLS = 5, 128
TOLERANCE_COL = 0.1


@functools.cache
def recorded(order: str = "sequential", cut: tuple[int, int] | None = None, i0: float = 50000.0, **options):
    """Line integrals [rows, projections, cols] of the foam phantom, its angles and its axis; `cut` leaves columns."""
    settings = {"sample": "foam", "rows": ROWS, "cols": COLS, "projections": 180, "flats": 1, "darks": 1, "i0": i0}
    chosen = phantom.Options(**(settings | options), dtype="float32", fixed_pattern=0)
    source = phantom.Source(chosen, order=order, repeat=1)
    frames = [source.frame(FrameKind.PROJECTION, index) for index in range(chosen.projections)]
    seen = np.stack([frame.pixels for frame in frames], axis=1)
    integrals = -np.log(np.maximum(seen - chosen.dark, 0.5) / i0).astype(np.float32)
    first, last = cut or (0, COLS)
    return integrals[:, :, first:last], np.array([frame.angle_rad for frame in frames]), chosen.axis_col - first


def found(sinograms, angles_rad, *, last=True, total=lambda values: values):
    rows = np.arange(len(sinograms))
    return finder.find(sinograms, angles_rad, rows, rows, last=last, total=total)


TOLD = {
    "half a turn": ({}, "seam"),
    "another sample": ({"sample": "shepp-logan"}, "seam"),
    "off the middle by a fraction": ({"axis": 60.37}, "seam"),
    "off the middle to the left": ({"axis": 0.1 * COLS}, "seam"),
    "off the middle to the right": ({"axis": 0.9 * COLS}, "seam"),
    "noise": ({"i0": 1000.0}, "half turn"),
    "stripes": ({"rings": 0.02}, "seam"),
    "truncated": ({"cut": (24, 104), "projections": 300}, "seam"),
    "interlaced": ({"order": "interlaced"}, "seam"),
    "golden angle": ({"order": "golden-angle"}, "seam"),
    "a turn": ({"range_deg": 360.0}, "pairs"),
    "a turn, truncated": ({"range_deg": 360.0, "cut": (30, 98)}, "pairs"),
    "a turn, half acquisition": ({"range_deg": 360.0, "cut": (52, 128)}, "pairs"),
    "a turn, golden angle": ({"range_deg": 360.0, "order": "golden-angle", "projections": 200}, "pairs"),
    "160 degrees": ({"range_deg": 160.0}, "centre of mass"),
    "160 degrees, off the middle": ({"range_deg": 160.0, "axis": 75.3}, "centre of mass"),
}


@pytest.mark.parametrize("name", TOLD)
def test_the_axis_is_right_within_a_tenth_of_a_column(name):
    options, method = TOLD[name]
    sinograms, angles_rad, axis_col = recorded(**options)
    estimate = found(sinograms, angles_rad)
    assert isinstance(estimate, AxisEstimate), estimate
    assert estimate.axis_col == pytest.approx(axis_col, abs=TOLERANCE_COL)
    assert estimate.method == method
    assert estimate.method in finder.METHODS
    assert estimate.error_col < finder.MOST_ERROR_COL


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"range_deg": 160.0, "cut": (24, 104)}, "span 159.1 degrees.*beyond the detector"),
        ({"range_deg": 100.0}, "span 99.44 degrees, so no two projections are 180 degrees apart"),
        ({"i0": 60.0}, "uncertain"),
        ({"cut": (48, 80)}, "uncertain"),
        ({"rows": 1}, "a single detector row"),
        ({"absorption": 1e-4}, "no detector row that was looked at holds a sample"),
    ],
)
def test_what_cannot_be_told_is_refused(options, reason):
    sinograms, angles_rad, _ = recorded(**options)
    refused = found(sinograms, angles_rad)
    assert isinstance(refused, Undecided), refused
    assert re.search(reason, refused.reason)
    assert not refused.waiting


def test_the_tooth(tooth):
    with h5py.File(tooth) as file:
        exchange = file["exchange"]
        dark, flat = exchange["data_dark"][:].mean(0), exchange["data_white"][:].mean(0)
        counts, theta = exchange["data"][:], np.deg2rad(exchange["theta"][:])
    sinograms = -np.log((counts - dark) / (flat - dark)).transpose(1, 0, 2).astype(np.float32)
    assert found(sinograms, theta).axis_col == pytest.approx(295.5, abs=0.3)


def test_an_axis_appears_with_the_first_pair():
    sinograms, angles_rad, axis_col = recorded(range_deg=360.0, projections=360)
    for count in (150, 179):
        early = found(sinograms[:, :count], angles_rad[:count], last=False)
        assert isinstance(early, Undecided)
        assert early.waiting
        assert not finder.possible(angles_rad[:count])
    for count in (180, 181, 250):
        assert finder.possible(angles_rad[:count])
        estimate = found(sinograms[:, :count], angles_rad[:count], last=False)
        assert estimate.axis_col == pytest.approx(axis_col, abs=TOLERANCE_COL)
        assert estimate.projections == count


def test_ranks_find_the_same_axis_as_one():
    sinograms, angles_rad, _ = recorded(axis=60.37)
    rows, barrier, shared, results = np.arange(ROWS), threading.Barrier(3), {}, {}

    def rank(number, mine):
        def total(values):
            barrier.wait(60)
            shared[number] = values
            barrier.wait(60)
            return sum(shared[k] for k in range(3))

        results[number] = finder.find(sinograms[mine], angles_rad, rows[mine], rows, last=True, total=total)

    parts = [rows[:1], rows[1:], rows[:0]]
    threads = [threading.Thread(target=rank, args=each) for each in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = found(sinograms, angles_rad)
    for number in range(3):
        assert results[number].axis_col == pytest.approx(alone.axis_col, abs=1e-6)
        assert results[number].rows == alone.rows == ROWS


def test_a_tilted_axis_is_measured():
    rows = 100 * np.arange(ROWS)
    shifts = rows * np.tan(np.deg2rad(0.5))
    stacks = [recorded(axis=63.5 + shift, rows=1, seed=k)[0][0] for k, shift in enumerate(shifts)]
    estimate = finder.find(np.array(stacks), recorded()[1], rows, rows, last=True, total=lambda values: values)
    assert estimate.tilt_deg == pytest.approx(0.5, abs=0.05)
    assert estimate.tilt_error_deg < 0.1


def test_half_a_turn_is_told_from_less_and_from_holes():
    even = np.deg2rad(np.arange(0, 180, 2.0))
    order, positions = half_turn(even + 0.3)
    np.testing.assert_array_equal(order, np.arange(90))
    np.testing.assert_array_equal(positions, np.arange(90))
    assert half_turn(np.delete(even, range(20, 24))) is None
    assert half_turn(even[:80]) is None
    assert half_turn(even[:10]) is None


def test_pairs_are_exact_or_interpolated():
    pairs = mirror_pairs(np.deg2rad([0.0, 90.0, 180.0]))
    assert sorted(zip(pairs.direct, pairs.before, pairs.weight, strict=True)) == [(0, 2, 0), (2, 0, 0)]
    pairs = mirror_pairs(np.deg2rad([0.0, 179.0, 181.5]))
    assert (pairs.direct[0], pairs.before[0], pairs.after[0]) == (0, 1, 2)
    assert pairs.weight[0] == pytest.approx(0.4, abs=1e-5)
    assert mirror_pairs(np.deg2rad([0.0, 90.0])).count == 0


def test_sinograms_are_kept_up_to_a_limit_and_repeats_replace():
    kept = SampledSinograms(1, 2)
    for index in range(MOST_PROJECTIONS + 5):
        kept.add(index, float(index), np.full((2, 1), index, np.float32))
    kept.add(3, -1.0, np.full((2, 1), 9, np.float32))
    assert len(kept) == MOST_PROJECTIONS
    assert kept.angles_rad[3] == -1.0
    np.testing.assert_array_equal(kept.pixels[0, :5, 0], [0, 1, 2, 9, 4])
    assert sampled_rows(3).tolist() == [0, 1, 2]
    assert (len(sampled_rows(2000)), sampled_rows(2000).max()) == (16, 1937)


class Followed:
    """A follower of a scan of the phantom, in a run of one rank."""

    def __init__(self, **recon):
        scan = Scan(scan_id="s", rows=ROWS, cols=COLS, projections=180, flats=1, darks=1, dtype="<f4", axis_col=9.0)
        self.assignment = assign(0, 1, config.load(None, {"recon": {"axis": "auto"} | recon}), scan, 1)
        geometry = Geometry(n=self.assignment.n, cols=COLS, axis_col=self.assignment.axis_col)
        self.algorithm = open_algorithm(self.assignment.config.recon, geometry, ROWS)
        self.follower = AxisFollower(mpi.world(), self.assignment, self.algorithm)
        self.window = Window(length=180, step=60, cols=COLS, slices=ROWS)

    def feed(self, sinograms, angles_rad, part=slice(None)):
        for index in range(len(angles_rad))[part]:
            slot = self.window.slot(index, angles_rad[index])
            slot[:, :ROWS] = sinograms[:, index].T
            pixels = sinograms[:, index]
            frame = SlabFrame(
                kind=FrameKind.PROJECTION, index=index, angle_rad=angles_rad[index], position=index,
                acquired_s=0.0, pixels=pixels,
            )  # fmt: skip
            self.follower.accepted(frame, slot)


def test_the_image_waits_for_the_axis_and_a_file_says_where_it_is_from():
    run, (sinograms, angles_rad, axis_col) = Followed(), recorded(axis=60.37)
    assert run.follower.col == (COLS - 1) / 2
    run.feed(sinograms, angles_rad, slice(0, 90))
    assert not run.follower.ready()
    assert not run.follower.provenance()
    run.feed(sinograms, angles_rad, slice(90, 180))
    assert run.follower.ready()
    said = run.follower.provenance()
    assert said["axis_col"] == run.algorithm.geometry.axis_col == run.follower.col
    assert said["axis_col"] == pytest.approx(axis_col, abs=TOLERANCE_COL)
    assert '"projections": 180' in said["axis_history"]


def test_a_restart_goes_on_with_the_axis_and_with_the_search():
    run, (sinograms, angles_rad, _) = Followed(), recorded(axis=60.37)
    run.feed(sinograms, angles_rad, slice(0, 120))
    again = Followed()
    again.follower.restore(bare(run.follower.state()))
    assert not again.follower.ready()
    again.follower.refill(run.window)
    again.feed(sinograms, angles_rad, slice(120, 180))
    assert again.follower.ready()
    third = Followed()
    third.follower.restore(bare(again.follower.state()))
    assert third.follower.ready()
    assert third.algorithm.geometry.axis_col == again.follower.col
    assert third.follower.provenance() == again.follower.provenance()


def test_the_end_without_an_axis_is_an_error_that_says_what_to_do():
    run, (sinograms, angles_rad, _) = Followed(), recorded(range_deg=100.0)
    run.feed(sinograms, angles_rad)
    assert not run.follower.ready()
    with pytest.raises(
        InputError, match=r"cannot be found: the angles span 99.44 degrees.* Give it with --axis COLUMN"
    ):
        run.follower.conclude()
    given = Followed(axis=60.0)
    given.feed(sinograms, angles_rad)
    given.follower.conclude()
    assert given.follower.ready()
    assert given.follower.col == 60.0


def test_a_revised_axis_is_adopted_only_where_it_differs():
    run, (sinograms, angles_rad, axis_col) = Followed(), recorded(range_deg=360.0, projections=180)
    run.feed(sinograms, angles_rad, slice(0, 95))
    assert run.follower.ready()
    first = run.follower.col
    run.feed(np.roll(sinograms, 1, axis=2), angles_rad, slice(0, 180))
    assert run.follower.ready()
    assert run.follower.col == pytest.approx(axis_col + 1, abs=TOLERANCE_COL)
    assert [entry.split("}")[0] for entry in run.follower.provenance()["axis_history"].split("axis_col")[1:]]
    before = run.follower.col
    run.follower.conclude()
    assert run.follower.col == before != first


def test_an_axis_near_the_edge_is_noticed():
    run, (sinograms, angles_rad, _) = Followed(), recorded(axis=0.1 * COLS)
    run.feed(sinograms, angles_rad)
    assert run.follower.ready()
    assert [noticed.code for noticed in run.follower.notices()] == ["axis-near-edge"]
    half = Followed(field="half")
    assert half.assignment.n == 2 * COLS
