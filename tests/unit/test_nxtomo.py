"""Recorded scans in NXtomo files, ours and those of the package nxtomo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ministream import config
from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.source import open_source

DETECTOR = "entry/instrument/detector"
KEYS = np.array([2, 2, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 3])
CONTROL = np.array([2, 2, 1, 1, 0, 0, 0, 1, 0, 0, 1, -1, 3])
RANDOM = np.random.default_rng(0)
DATA = RANDOM.integers(1000, 4000, (13, 3, 8)).astype(np.uint16)
ANGLES = np.r_[np.zeros(4), [0.0, 36.0, 72.0], 72.0, [108.0, 144.0], 144.0, 0.0, 0.0]


def written(path: Path, **changes: Any) -> Path:
    """A sound scan of 5 projections, 1 alignment image and an invalid one; `changes` replaces or removes datasets."""
    datasets: dict[str, Any] = {
        f"{DETECTOR}/data": DATA,
        f"{DETECTOR}/image_key": KEYS,
        f"{DETECTOR}/image_key_control": CONTROL,
        "entry/sample/rotation_angle": ANGLES,
    }
    with h5py.File(path, "w") as file:
        for name, values in (datasets | {key.replace("__", "/"): value for key, value in changes.items()}).items():
            if values is not None:
                file[name] = values
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.nxs"


def played(path: Path, **options: Any) -> tuple[Scan, dict[FrameKind, list[Frame]]]:
    section = config.SourceSection(kind="nxtomo", file=str(path), **options)
    with open_source(section, order="sequential", repeat=1) as source:
        frames = list(source.frames())
        return source.describe(), {kind: [f for f in frames if f.kind is kind] for kind in FrameKind}


def pixels(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.pixels for frame in frames])


def detector(name: str) -> str:
    return f"{DETECTOR}/{name}".replace("/", "__")


def test_images_are_sorted_by_their_key(path: Path) -> None:
    scan, frames = played(written(path))
    assert (scan.projections, scan.flats, scan.darks) == (5, 4, 2)
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA[CONTROL == 0])
    np.testing.assert_array_equal(pixels(frames[FrameKind.FLAT]), DATA[CONTROL == 1])
    np.testing.assert_array_equal(pixels(frames[FrameKind.DARK]), DATA[CONTROL == 2])
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), ANGLES[CONTROL == 0])


def test_flats_keep_their_place_in_the_scan(path: Path) -> None:
    _, frames = played(written(path))
    assert [f.position for f in frames[FrameKind.FLAT]] == [0, 0, 3, 5]
    assert [f.position for f in frames[FrameKind.DARK]] == [0, 0]
    assert [f.position for f in frames[FrameKind.PROJECTION]] == [0, 1, 2, 3, 4]


def test_alignment_images_may_be_marked_in_the_key_itself(path: Path) -> None:
    scan, _ = played(written(path, **{detector("image_key"): CONTROL, detector("image_key_control"): None}))
    assert scan.projections == 5
    scan, _ = played(written(path, **{detector("image_key_control"): None}))
    assert scan.projections == 6


def test_the_case(shared: Path, tmp_path: Path) -> None:
    make = [sys.executable, str(shared / "cases" / "make.py"), str(tmp_path), "nxtomo", "base"]
    subprocess.run(make, check=True, timeout=60)
    scan, frames = played(tmp_path / "scan.nxs")
    assert (scan.projections, scan.flats, scan.darks) == (90, 10, 5)
    with h5py.File(tmp_path / "base.h5") as file:
        np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), file["exchange/data"])
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), np.arange(90) * 2)
    assert {f.position for f in frames[FrameKind.FLAT]} == {0.0, 90.0}


@pytest.mark.parametrize("order", ["sequential", "golden-angle"])
def test_golden_order_plays_the_same_views(path: Path, order: str) -> None:
    section = config.SourceSection(kind="nxtomo", file=str(written(path)))
    with open_source(section, order=order, repeat=2) as source:
        views = [frame for frame in source.frames() if frame.kind is FrameKind.PROJECTION]
    recorded = [round(frame.position) for frame in views]
    np.testing.assert_array_equal(pixels(views), DATA[CONTROL == 0][recorded])


def test_units_and_metadata(path: Path) -> None:
    written(path, **{detector("x_pixel_size"): 6.5e-6, "entry__instrument__beam__incident_energy": 20.0,
                     "entry__sample__name": "bone", "entry__sample__rotation_angle": np.radians(ANGLES)})  # fmt: skip
    with h5py.File(path, "a") as file:
        file[f"{DETECTOR}/x_pixel_size"].attrs["units"] = "m"
        file["entry/instrument/beam/incident_energy"].attrs["units"] = "keV"
        file["entry/sample/rotation_angle"].attrs["units"] = "rad"
    scan, frames = played(path)
    assert (scan.pixel_size_um, scan.energy_kev, scan.sample) == (pytest.approx(6.5), 20.0, "bone")
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), ANGLES[CONTROL == 0])


@pytest.mark.parametrize(
    ("names", "turned"),
    [
        ({"transformations/ry": 180}, np.s_[:, :, ::-1]),
        ({"transformations/rx": 180}, np.s_[:, ::-1]),
        ({"transformations/ry": 180, "transformations/rx": 180}, np.s_[:, ::-1, ::-1]),
        ({"transformations/ry": 0}, np.s_[:]),
        ({"x_flipped": True}, np.s_[:, :, ::-1]),
        ({"y_flipped": True, "x_flipped": False}, np.s_[:, ::-1]),
    ],
)
def test_mirrored_detectors_are_mirrored_back(path: Path, names: dict[str, Any], turned: Any) -> None:
    written(path, **{detector(name): value for name, value in names.items()})
    for rows in (None, [0, 2]):
        _, frames = played(path, rows=rows) if rows else played(path)
        expected = DATA[CONTROL == 0][turned]
        np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), expected[:, :2] if rows else expected)


def test_the_axis_is_mirrored_with_the_image(path: Path) -> None:
    axis = {detector("x_rotation_axis_pixel_position"): 1.25}
    assert played(written(path, **axis))[0].axis_col == 1.25
    assert played(written(path, **axis, **{detector("transformations/ry"): 180}))[0].axis_col == 7 - 1.25
    assert played(path, axis=3.0)[0].axis_col == 3.0
    scan, _ = played(written(path, **{detector("x_rotation_axis_pixel_position"): -40.0}))
    assert scan.axis_col is None
    assert [found.code for found in scan.notices] == ["axis-outside"]


@pytest.mark.parametrize("half", [{"field_of_view": "Half"}, {"half_acquisition": True}])
def test_half_acquisition_needs_its_axis(path: Path, half: dict[str, Any]) -> None:
    said = {detector(name): value for name, value in half.items()}
    with pytest.raises(ConfigError, match=r"half acquisition.*--set source\.axis=COLUMN"):
        played(written(path, **said))
    assert played(path, axis=1.0)[0].axis_col == 1.0
    assert played(written(path, **said, **{detector("x_rotation_axis_pixel_position"): 6.0}))[0].axis_col == 6.0
    assert played(written(path, **{detector("field_of_view"): "Full", detector("half_acquisition"): False}))[0]


def test_the_beam_monitor_takes_out_the_decay_of_the_beam(path: Path) -> None:
    beam = np.linspace(1.0, 0.5, 13)
    dark = np.full((3, 8), 100.0)
    steady = np.where((CONTROL == 2)[:, None, None], 0.0, 2000.0 + DATA / 10)
    seen = np.rint(dark + steady * beam[:, None, None]).astype(np.uint16)
    written(path, **{detector("data"): seen, "entry__control__data": beam})
    scan, frames = played(path)
    expected = dark + steady * beam[(CONTROL == 0) | (CONTROL == 1)].mean()
    assert scan.dtype == "<f4"
    np.testing.assert_allclose(pixels(frames[FrameKind.PROJECTION]), expected[CONTROL == 0], atol=2)
    np.testing.assert_allclose(pixels(frames[FrameKind.FLAT]), expected[CONTROL == 1], atol=2)
    np.testing.assert_allclose(pixels(frames[FrameKind.DARK]), 100)
    assert played(path, monitor=False)[0].dtype == "<u2"


@pytest.mark.parametrize("beam", [np.zeros(13), np.full(13, np.nan), np.r_[np.ones(12), -1.0][::-1]])
def test_a_monitor_that_saw_nothing_is_not_used(path: Path, beam: np.ndarray) -> None:
    scan, _ = played(written(path, entry__control__data=beam))
    used = [found.code for found in scan.notices]
    assert used == (["monitor-unusable"] if not (beam[CONTROL < 2] > 0).all() or np.isnan(beam).any() else [])


def test_a_steady_monitor_leaves_the_counts_as_they_are(path: Path) -> None:
    assert played(written(path, entry__control__data=np.full(13, 200.0)))[0].dtype == "<u2"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({detector("image_key"): None, detector("image_key_control"): None}, "image_key, expected a NXtomo scan"),
    "short key": ({detector("image_key_control"): CONTROL[:5]}, "has 5 values, expected one for each of 13 images"),
    "no projection": ({detector("image_key_control"): np.ones(13)}, "marks none of 13 images as projections"),
    "no images": ({detector("data"): None}, "images are missing"),
    "no angles": ({"entry__sample__rotation_angle": None}, r"angles are missing.*--set 'source\.angles="),
    "short angles": ({"entry__sample__rotation_angle": ANGLES[:7]}, "has 7 values, expected one for each of 13"),
    "key in words": ({detector("image_key_control"): np.array([b"flat"] * 13)}, "expected numbers"),
    "text pixels": ({detector("data"): DATA.astype("S5")}, "pixels must be"),
    "one image": ({detector("data"): DATA[0]}, "it must be"),
    "no finite angle": ({"entry__sample__rotation_angle": np.full(13, np.nan)}, "none of the requested projections"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_name_and_a_remedy(path: Path, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        played(written(path, **changes))
    assert str(path) in str(caught.value)


def test_remedies_work(path: Path) -> None:
    written(path, entry__sample__rotation_angle=None)
    _, frames = played(path, angles={"start": 0.0, "step": 36.0})
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), np.arange(5) * 36)
    written(path)
    with h5py.File(path, "a") as file:
        file.copy("entry", "other")
    with pytest.raises(InputError, match=r"2 scans \(/entry, /other\).*--set source\.entry=/entry"):
        played(path)
    assert played(path, entry="/entry")[0].projections == 5


@pytest.mark.parametrize("dtype", [">u2", ">f4", "u1"])
def test_pixels_come_in_native_byte_order(path: Path, dtype: str) -> None:
    scan, frames = played(written(path, **{detector("data"): (DATA // 32).astype(dtype)}))
    assert scan.dtype == np.dtype(dtype).newbyteorder("=").str
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA[CONTROL == 0] // 32)


def test_missing_truncated_and_foreign_files(path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        played(path)
    whole = written(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        played(path)
    path.write_bytes(b"image_key\n")
    with pytest.raises(InputError, match="not an HDF5 file"):
        played(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(path: Path) -> None:
    written(path)
    section = config.SourceSection(kind="nxtomo", file=str(path))
    with open_source(section, order="sequential", repeat=1) as source:
        frames = source.frames()
        next(frames)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(InputError, match=r"scan\.nxs: (the file shrank|.*cannot be read)"):
            list(frames)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_are_passed_on(path: Path, value: float) -> None:
    data = DATA.astype(np.float32)
    data[5, 1, 2] = value
    _, frames = played(written(path, **{detector("data"): data}))
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION])[1], data[5])


def test_signed_counts_are_refused_or_read_as_unsigned(path: Path) -> None:
    written(path, **{detector("data"): (DATA + 36000).view(np.int16)})
    with pytest.raises(InputError, match=r"negative, expected counts.*--set source\.unsigned=true"):
        played(path)
    _, frames = played(path, unsigned=True)
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), (DATA + 36000)[CONTROL == 0])


def test_calibration_after_the_projections_keeps_its_place(path: Path) -> None:
    control = np.array([3, 3, 3, 3, 0, 0, 0, 3, 0, 0, 1, 1, 2])
    scan, frames = played(written(path, **{detector("image_key_control"): control}))
    assert (scan.flats, scan.darks) == (2, 1)
    assert [frame.position for frame in frames[FrameKind.FLAT] + frames[FrameKind.DARK]] == [5.0] * 3
    scan, frames = played(written(path, **{detector("image_key_control"): np.where(control == 0, 0, 3)}))
    assert (scan.flats, scan.darks, scan.projections) == (0, 0, 5)


PACKAGE = """
import sys
import numpy as np
import pint
from nxtomo.application.nxtomo import NXtomo
from nxtomo.nxobject.nxdetector import ImageKey
from nxtomo.utils.transformation import DetYFlipTransformation
unit = pint.get_application_registry()
scan = NXtomo()
detector = scan.instrument.detector
detector.data = np.load(sys.argv[1])
detector.image_key_control = [ImageKey(key) for key in np.load(sys.argv[2]).tolist()]
scan.sample.rotation_angle = np.load(sys.argv[3]) * unit.degree
scan.sample.name = "bone"
detector.x_pixel_size = detector.y_pixel_size = 6.5e-6 * unit.meter
scan.control.data = np.linspace(200, 190, len(detector.data)) * unit.milliampere
detector.half_acquisition = True
detector.x_rotation_axis_pixel_position = 1.25
detector.transformations.add_transformation(DetYFlipTransformation(flip=True))
scan.save(sys.argv[4], "entry0000")
"""


def test_a_file_of_the_package_nxtomo_is_read_back(path: Path, tmp_path: Path) -> None:
    """In a process of its own: the package warns of its own deprecations."""
    pytest.importorskip("nxtomo", exc_type=ImportError)
    arrays = {"data": DATA, "keys": CONTROL, "angles": ANGLES}
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    script = [sys.executable, "-W", "ignore", "-c", PACKAGE, *(str(tmp_path / f"{name}.npy") for name in arrays)]
    subprocess.run([*script, str(path)], check=True, timeout=120, capture_output=True)
    scan, frames = played(path, monitor=False)
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA[CONTROL == 0][:, :, ::-1])
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), ANGLES[CONTROL == 0])
    assert (scan.axis_col, scan.pixel_size_um, scan.sample) == (5.75, pytest.approx(6.5), "bone")
    assert played(path)[0].dtype == "<f4"
