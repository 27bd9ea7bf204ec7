"""The order of a DAQ stream: calibration before the projections it corrects, whatever way it arrives."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream.errors import FrameError
from ministream.model import Frame, FrameKind
from ministream.wire import timage
from ministream.wire.daq import DaqStream
from ministream.wire.daq_order import dataset_order, original_order
from ministream.wire.timage import ImageType
from tests.recordings import timage_messages

P, W, D, WR, DR = (
    ImageType.PROJECTION,
    ImageType.WHITE,
    ImageType.DARK,
    ImageType.WHITE_RESET,
    ImageType.DARK_RESET,
)
FLAT, DARK, PROJECTION = FrameKind.FLAT, FrameKind.DARK, FrameKind.PROJECTION
DATASET = [WR, W, W, DR, D, P, P, P, P, P, P, P]


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What is logged as a warning, whether or not an earlier test set up the package's log."""
    monkeypatch.setattr(logging.getLogger("ministream"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def stream(**changes) -> DaqStream:
    options = {"pixel_dtype": "uint16", "angle_unit": "degrees", "hold_bytes": 2**20, "needs_flats": False}
    return DaqStream(**{"peer": "tcp://daq:50000"} | options | changes)


def message(kind: ImageType, seq: int, *, rotation: float | None = None, pixels=None) -> bytes:
    """An image whose pixels all equal its number."""
    pixels = np.full((2, 3), abs(seq), np.uint16) if pixels is None else pixels
    rotation = seq * 1.0 if rotation is None and kind is P else rotation or 0.0
    return bytes(timage.encode(pixels, image_type=kind, seq=seq, rotation=rotation, center=1.5, unique_id=seq))


def play(daq: DaqStream, order, kinds=DATASET, end=True):
    """(kind, index, number) of every frame that came out."""
    frames = [frame for seq in order for frame in daq.receive(message(kinds[seq], seq), 0.0)]
    frames += daq.end() if end else []
    return [(frame.kind, frame.index, int(frame.pixels[0, 0])) for frame in frames]


def test_a_stream_in_order_passes_at_once() -> None:
    daq = stream()
    assert play(daq, range(5), end=False) == []
    released = play(daq, [5], end=False)
    assert [kind for kind, _, _ in released] == [DARK, DARK, FLAT, FLAT, FLAT, PROJECTION]
    assert play(daq, [6]) == [(PROJECTION, 1, 6)]
    assert daq.shape == (2, 3)
    assert daq.axis_col == 1.0


@given(st.permutations(range(len(DATASET))))
def test_any_order_gives_whole_sets_before_the_first_projection(order) -> None:
    daq = stream()
    frames = play(daq, order)
    assert frames[:5] == [(DARK, 0, 3), (DARK, 1, 4), (FLAT, 0, 0), (FLAT, 1, 1), (FLAT, 2, 2)]
    assert [kind for kind, _, _ in frames[5:]] == [PROJECTION] * 7
    assert [index for _, index, _ in frames[5:]] == list(range(7))
    assert [seq for _, _, seq in frames[5:]] == [seq for seq in order if seq >= 5]
    assert daq.missing == 0


def test_the_recording_comes_out_as_the_file_it_was_made_from(shared: Path, tooth: Path) -> None:
    daq = stream(pixel_dtype="float32", peer="recording")
    frames = [frame for one in timage_messages(shared)[:-1] for frame in daq.receive(one, 0.0)] + daq.end()
    kinds = [frame.kind for frame in frames]
    assert kinds == [DARK] * 10 + [FLAT] * 10 + [PROJECTION] * 181
    with h5py.File(tooth) as file:
        flats, projections = file["exchange/data_white"][:], file["exchange/data"][:]
        dark, theta = file["exchange/data_dark"][-1], file["exchange/theta"][:]
    np.testing.assert_array_equal([frame.pixels for frame in frames[10:20]], flats)
    # The original sends its last dark ten times over.
    np.testing.assert_array_equal([frame.pixels for frame in frames[:10]], [dark] * 10)
    by_angle = sorted(frames[20:], key=lambda frame: frame.angle_rad)
    np.testing.assert_array_equal([frame.pixels for frame in by_angle], projections)
    np.testing.assert_allclose([math.degrees(frame.angle_rad) for frame in by_angle], theta, atol=1e-4)
    assert (daq.received, daq.missing, daq.passes) == (201, 0, 1)


def test_a_reset_within_the_scan_starts_a_new_set() -> None:
    kinds = [WR, DR, P, P, WR, W, P, DR, P]
    frames = play(stream(), range(9), kinds)
    assert frames == [
        *[(DARK, 0, 1), (FLAT, 0, 0), (PROJECTION, 0, 2), (PROJECTION, 1, 3)],
        *[(DARK, 0, 1), (FLAT, 0, 4), (FLAT, 1, 5), (PROJECTION, 2, 6)],
        *[(DARK, 0, 7), (FLAT, 0, 4), (FLAT, 1, 5), (PROJECTION, 3, 8)],
    ]


def test_a_projection_that_overtakes_the_flats_of_a_new_set_waits_for_them() -> None:
    kinds = [WR, P, WR, W, P]
    daq = stream()
    assert len(play(daq, [0, 1, 2, 4], kinds, end=False)) == 2
    assert play(daq, [3], kinds) == [(FLAT, 0, 2), (FLAT, 1, 3), (PROJECTION, 1, 4)]


def test_a_flat_without_reset_adds_to_the_set() -> None:
    assert play(stream(), range(4), [W, P, W, P]) == [
        *[(FLAT, 0, 0), (PROJECTION, 0, 1)],
        *[(FLAT, 0, 0), (FLAT, 1, 2), (PROJECTION, 1, 3)],
    ]


def test_projections_need_no_calibration() -> None:
    daq = stream()
    assert play(daq, range(3), [P] * 3, end=False) == [(PROJECTION, k, k) for k in range(3)]


def test_projections_that_come_before_their_flats_wait_for_the_whole_set() -> None:
    kinds = [P, P, W, W, D, P, P]
    daq = stream(needs_flats=True)
    assert play(daq, range(5), kinds, end=False) == []
    assert play(daq, [5, 6], kinds) == [
        *[(DARK, 0, 4), (FLAT, 0, 2), (FLAT, 1, 3)],
        *[(PROJECTION, index, seq) for index, seq in enumerate([0, 1, 5, 6])],
    ]


def test_flats_that_end_the_stream_are_used_for_everything_before(warnings) -> None:
    frames = play(stream(needs_flats=True), range(4), [P, P, W, W])
    assert warnings() == []
    assert frames == [(FLAT, 0, 2), (FLAT, 1, 3), (PROJECTION, 0, 0), (PROJECTION, 1, 1)]


def test_what_waits_is_bounded(warnings) -> None:
    daq = stream(hold_bytes=3 * 12)
    frames = play(daq, [0, 5, 6, 7], end=False)
    assert frames == []
    frames = play(daq, [8], end=False)
    assert frames == [(FLAT, 0, 0), *[(PROJECTION, k, k + 5) for k in range(4)]]
    assert "4 projections wait" in warnings()[0]
    assert "hold_mib" in warnings()[0]
    assert play(daq, [9, 1, 10]) == [(PROJECTION, 4, 9), (FLAT, 0, 0), (FLAT, 1, 1), (PROJECTION, 5, 10)]


def test_what_waits_at_the_end_is_used(warnings) -> None:
    daq = stream()
    assert play(daq, [0, 5, 6]) == [(FLAT, 0, 0), (PROJECTION, 0, 5), (PROJECTION, 1, 6)]
    assert "missing" in warnings()[0]
    assert daq.missing == 4


def test_repeated_passes_and_missing_numbers_are_counted() -> None:
    daq = stream()
    first = play(daq, [n for n in range(12) if n != 9], end=False)
    second = play(daq, [n for n in range(12) if n not in (7, 8)], end=False)
    third = play(daq, range(11))
    counts = [sum(kind is PROJECTION for kind, _, _ in frames) for frames in (first, second, third)]
    assert counts == [6, 5, 6]
    assert second[0:2] == [(DARK, 0, 3), (DARK, 1, 4)]
    assert third[-1] == (PROJECTION, 16, 10)
    assert daq.passes == 3
    assert daq.missing == 1 + 2 + 1


def test_interleaved_passes_complete_their_sets_each(shared: Path) -> None:
    daq = stream(pixel_dtype="float32", peer="recording")
    frames = [frame for one in timage_messages(shared)[:-1] * 2 for frame in daq.receive(one, 0.0)] + daq.end()
    assert [frame.kind for frame in frames] == ([DARK] * 10 + [FLAT] * 10 + [PROJECTION] * 181) * 2
    assert (daq.passes, daq.missing) == (2, 0)


def test_what_a_broken_pass_left_waiting_goes_on_with_the_next_pass() -> None:
    daq = stream()
    play(daq, [0, 1, 2, 3, 5], end=False)
    frames = play(daq, [0], end=False)
    assert frames[-1] == (PROJECTION, 0, 5)


@pytest.mark.parametrize(
    ("unit", "angles", "said"),
    [
        ("degrees", np.linspace(0, math.pi, 20), "--angle-unit radians"),
        ("radians", np.linspace(0, 180, 20), "--angle-unit degrees"),
        ("degrees", np.linspace(0, 180, 20), None),
        ("radians", np.linspace(0, 2 * math.pi, 20), None),
        ("degrees", [0.0, 1.0], None),
    ],
)
def test_angles_that_look_like_the_other_unit_are_warned_of_once(warnings, unit, angles, said) -> None:
    daq = stream(angle_unit=unit)
    for seq, angle in enumerate(angles):
        daq.receive(message(P, seq, rotation=angle), 0.0)
    daq.end()
    assert [said in text for text in warnings()] == ([True] if said else [])


@pytest.mark.parametrize(("unit", "expected"), [("degrees", math.radians(30)), ("radians", 30.0)])
def test_angles_are_radians_inside(unit, expected) -> None:
    (frame,) = stream(angle_unit=unit).receive(message(P, 0, rotation=30.0), 12.5)
    assert frame.angle_rad == pytest.approx(expected)
    assert frame.acquired_s == 12.5


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (b"garbage", "TImage"),
        (message(ImageType.END, 1), "itype 0 END"),
        (message(P, 1, pixels=np.zeros((4, 2, 3), np.uint16)), "4 slices"),
        (message(P, 1, pixels=np.zeros((3, 3), np.uint16)), "dims"),
        (message(P, 1, pixels=np.zeros((2, 3), np.float32)), "--pixel-dtype float32"),
        (message(P, -1), "seq -1"),
        (message(P, 0), "seq 0 after 0"),
    ],
)
def test_a_bad_image_is_refused_with_peer_and_field_and_the_stream_goes_on(bad, field) -> None:
    daq = stream()
    assert len(daq.receive(message(P, 0), 0.0)) == 1
    with pytest.raises(FrameError, match=f"tcp://daq:50000: .*{field}"):
        daq.receive(bad, 0.0)
    assert len(daq.receive(message(P, 1), 0.0)) == 1
    assert daq.received == 2


def test_a_refused_first_image_does_not_fix_the_shape() -> None:
    daq = stream()
    with pytest.raises(FrameError, match="float32"):
        daq.receive(message(P, 0, pixels=np.zeros((9, 9), np.float32)), 0.0)
    assert daq.shape is None


def test_datasets_are_numbered_and_interleaved_like_the_original(shared: Path) -> None:
    kinds = [DARK] * 10 + [FLAT] * 10 + [PROJECTION] * 181
    dataset = [Frame(kind=k, index=0, angle_rad=0.0, pixels=np.zeros(n), acquired_s=0.0) for n, k in enumerate(kinds)]
    ordered = list(dataset_order(iter(dataset)))
    assert [frame.kind for frame in ordered] == [FLAT] * 10 + [DARK] * 10 + [PROJECTION] * 181
    assert [frame.pixels.size for frame in ordered] == [*range(10, 20), *range(10), *range(20, 201)]
    number = {id(frame): seq for seq, frame in enumerate(ordered)}
    sent = [number[id(frame)] for frame in original_order(dataset)]
    assert sent == [timage.decode(one).seq for one in timage_messages(shared)[:-1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_passed_on_to_be_mended(value) -> None:
    waiting = stream(pixel_dtype="float32", needs_flats=False)
    (frame,) = waiting.receive(message(P, 0, pixels=np.float32([[1, value]])), 0.0)
    np.testing.assert_array_equal(frame.pixels, np.float32([[1, value]]))
