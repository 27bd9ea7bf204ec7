"""Recorded scans in DXchange files: what is read, what stands in for what is missing, and every way to be wrong."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream import config
from ministream.errors import ConfigError, InputError
from ministream.model import FrameKind
from ministream.source import _hdf5, _images, open_source

ACQUISITION = "/process/acquisition"
INSTRUMENT = "/measurement/instrument"
RANDOM = np.random.default_rng(0)
DATA = RANDOM.integers(0, 60_000, (9, 4, 6)).astype(np.uint16)
FLATS = RANDOM.integers(50_000, 60_000, (3, 4, 6)).astype(np.uint16)
DARKS = RANDOM.integers(0, 200, (2, 4, 6)).astype(np.uint16)
THETA = np.arange(9) * 20.0


def scan_datasets():
    """The datasets of a sound scan; tests change single ones."""
    return {
        "/exchange/data": DATA,
        "/exchange/data_white": FLATS,
        "/exchange/data_dark": DARKS,
        "/exchange/theta": THETA,
    }


def written(path, changes=None, attributes=None, **creation):
    """A scan in which `changes` replaces datasets, or leaves out those that are None."""
    with h5py.File(path, "w") as file:
        for name, values in (scan_datasets() | (changes or {})).items():
            if values is not None:
                layout = creation if name == "/exchange/data" else {}
                file.create_dataset(name, data=values, **layout)
        for (name, key), value in (attributes or {}).items():
            file[name].attrs[key] = value
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.h5"


def opened(path, order="sequential", repeat=1, **options):
    return open_source(config.SourceSection(kind="dxchange", file=str(path), **options), order=order, repeat=repeat)


def frames(path, **options):
    """All frames by kind."""
    with opened(path, **options) as source:
        played = list(source.frames())
    return {kind: [f for f in played if f.kind is kind] for kind in FrameKind}


def pixels(played):
    return np.stack([f.pixels for f in played])


def test_whole_scan(path):
    played = frames(written(path))
    np.testing.assert_array_equal(pixels(played[FrameKind.PROJECTION]), DATA)
    np.testing.assert_array_equal(pixels(played[FrameKind.FLAT]), FLATS)
    np.testing.assert_array_equal(pixels(played[FrameKind.DARK]), DARKS)
    np.testing.assert_allclose([f.angle_rad for f in played[FrameKind.PROJECTION]], np.deg2rad(THETA))
    assert {f.angle_rad for kind in (FrameKind.FLAT, FrameKind.DARK) for f in played[kind]} == {0.0}


def test_scan_describes_the_file(path):
    written(
        path,
        {
            f"{INSTRUMENT}/detection_system/objective/resolution": [0.65],
            f"{INSTRUMENT}/monochromator/energy": [27.4],
            "/measurement/sample/name": np.array([b"Tooth\0\0"]),
        },
        {
            (f"{INSTRUMENT}/detection_system/objective/resolution", "units"): "microns",
            (f"{INSTRUMENT}/monochromator/energy", "units"): np.bytes_("keV"),
        },
    )
    with opened(path, axis=2.25) as source:
        scan = source.describe()
    assert (scan.rows, scan.cols, scan.projections, scan.flats, scan.darks) == (4, 6, 9, 3, 2)
    assert (scan.dtype, scan.axis_col, scan.sample) == ("<u2", 2.25, "Tooth")
    assert (scan.pixel_size_um, scan.energy_kev) == (0.65, 27.4)
    assert scan.truth is None


def test_the_real_scan(tooth):
    played = frames(tooth, axis=295.5)
    with h5py.File(tooth) as file:
        for kind, name in (
            (FrameKind.PROJECTION, "data"),
            (FrameKind.FLAT, "data_white"),
            (FrameKind.DARK, "data_dark"),
        ):
            np.testing.assert_array_equal(pixels(played[kind]), file[f"exchange/{name}"][()])
        np.testing.assert_allclose(
            [f.angle_rad for f in played[FrameKind.PROJECTION]], np.deg2rad(file["exchange/theta"])
        )
    with opened(tooth) as source:
        assert (source.describe().dtype, source.describe().sample, source.describe().axis_col) == ("<f4", "Tooth", None)


def test_rows_and_projections_can_be_picked(path):
    played = frames(written(path), rows=[1, 3], projections=[2, 9], every=3)
    for kind, stack in ((FrameKind.PROJECTION, DATA[2:9:3]), (FrameKind.FLAT, FLATS), (FrameKind.DARK, DARKS)):
        np.testing.assert_array_equal(pixels(played[kind]), stack[:, 1:3])
    np.testing.assert_allclose([f.angle_rad for f in played[FrameKind.PROJECTION]], np.deg2rad(THETA[2:9:3]))


@pytest.mark.parametrize("order", ["interlaced", "golden-angle"])
def test_each_frame_keeps_its_angle_whatever_the_order(path, order):
    played = frames(written(path), order=order, repeat=2)[FrameKind.PROJECTION]
    assert [f.index for f in played] == list(range(18))
    recorded = [round(np.rad2deg(f.angle_rad) / 20) for f in played]
    np.testing.assert_array_equal(pixels(played), DATA[recorded])
    assert sorted(recorded[:9]) == list(range(9)) == sorted(recorded[9:])
    assert recorded[:9] == recorded[9:] != list(range(9))


@settings(max_examples=25, deadline=None)
@given(
    chunk=st.sampled_from([None, (1, 4, 6), (2, 2, 6), (4, 4, 3), (9, 1, 1), (16, 4, 6)]),
    block=st.sampled_from([1, 100, 64 << 20]),
    order=st.sampled_from(["sequential", "interlaced", "golden-angle"]),
    every=st.integers(1, 9),
)
def test_any_chunking_reads_the_same_pixels(tmp_path_factory, chunk, block, order, every):
    path = tmp_path_factory.mktemp("chunks") / "scan.h5"
    creation = {"chunks": chunk, "maxshape": (None, 4, 6), "compression": "gzip"} if chunk else {}
    written(path, **creation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_images, "MAX_MEMORY_BYTES", block)
        played = frames(path, order=order, every=every)[FrameKind.PROJECTION]
    recorded = [round(np.rad2deg(f.angle_rad) / 20) for f in played]
    assert sorted(recorded) == list(range(0, 9, every))
    np.testing.assert_array_equal(pixels(played), DATA[recorded])
    assert all(f.pixels.flags.c_contiguous for f in played)
    assert all(f.pixels.base is None or f.pixels.base.nbytes == f.pixels.nbytes for f in played)


def test_a_scan_larger_than_memory_is_read_frame_by_frame(path):
    """200 GiB of pixels in a sparse file take no room on disk, and none in memory."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        exchange = file.create_group("exchange")
        for name, count in (("data", 50_000), ("data_white", 2), ("data_dark", 2)):
            space = h5py.h5s.create_simple((count, 1000, 2000))
            h5py.h5d.create(exchange.id, name.encode(), h5py.h5t.STD_U16LE, space, dcpl=created)
        file["exchange/theta"] = np.linspace(0, 180, 50_000)
    tracemalloc.start()
    with opened(path, order="interlaced") as source:
        for _, frame in zip(range(12), source.frames(), strict=False):
            assert frame.pixels.shape == (1000, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


@pytest.mark.parametrize("dtype", [">u2", ">f4", ">i4", "u1", "i2", "<f8", "f2"])
def test_pixels_come_in_their_own_dtype_and_native_byte_order(path, dtype):
    stacks = {
        name: scan_datasets()[name] // 256 for name in ("/exchange/data", "/exchange/data_white", "/exchange/data_dark")
    }
    written(path, {name: stack.astype(dtype) for name, stack in stacks.items()})
    played = frames(path)
    native = np.dtype(dtype).newbyteorder("=")
    assert {f.pixels.dtype for kind in FrameKind for f in played[kind]} == {native}
    np.testing.assert_array_equal(pixels(played[FrameKind.PROJECTION]), stacks["/exchange/data"])
    with opened(path) as source:
        assert source.describe().dtype == native.str


@pytest.mark.parametrize(
    ("flats", "dtype"), [(np.uint8, "<u2"), (np.float32, "<f4"), (np.float64, "<f4"), (np.int32, "<i4")]
)
def test_calibration_of_another_dtype_widens_the_scan(path, flats, dtype):
    averaged = (FLATS // 256).astype(flats)
    played = frames(written(path, {"/exchange/data_white": averaged}))
    assert {f.pixels.dtype.str for kind in FrameKind for f in played[kind]} == {dtype}
    np.testing.assert_array_equal(pixels(played[FrameKind.FLAT]), averaged)
    np.testing.assert_array_equal(pixels(played[FrameKind.PROJECTION]), DATA)


def test_nan_pixels_are_passed_on_for_the_receiver_to_judge(path):
    spoiled = DATA.astype(np.float32)
    spoiled[4, 1, 1] = np.nan
    np.testing.assert_array_equal(
        pixels(frames(written(path, {"/exchange/data": spoiled}))[FrameKind.PROJECTION]), spoiled
    )


@pytest.mark.parametrize("names", [("flat_field_value", "dark_field_value"), ("value", "value")])
def test_detector_levels_stand_in_for_images(path, names):
    levels = {f"{ACQUISITION}/flat_fields/{names[0]}": [30_000], f"{ACQUISITION}/dark_fields/{names[1]}": [12.0]}
    blank = np.zeros((1, 4, 6), np.uint16)
    for missing in (None, blank):
        played = frames(written(path, {"/exchange/data_white": missing, "/exchange/data_dark": missing} | levels))
        assert pixels(played[FrameKind.FLAT]).tolist() == np.full((1, 4, 6), 30_000).tolist()
        assert pixels(played[FrameKind.DARK]).tolist() == np.full((1, 4, 6), 12).tolist()
        assert played[FrameKind.PROJECTION][0].pixels.dtype == np.uint16


def test_a_level_between_counts_makes_the_scan_float(path):
    levels = {"/exchange/data_dark": None, f"{ACQUISITION}/dark_fields/dark_field_value": [12.5]}
    played = frames(written(path, levels), rows=[0, 2])
    assert {f.pixels.dtype.str for kind in FrameKind for f in played[kind]} == {"<f4"}
    assert pixels(played[FrameKind.DARK]).tolist() == np.full((1, 2, 6), 12.5).tolist()


def test_images_win_over_levels(path):
    played = frames(written(path, {f"{ACQUISITION}/dark_fields/dark_field_value": [12.5]}))
    np.testing.assert_array_equal(pixels(played[FrameKind.DARK]), DARKS)


def test_a_blank_dark_without_a_level_is_used(path):
    blank = np.zeros((1, 4, 6), np.uint16)
    np.testing.assert_array_equal(pixels(frames(written(path, {"/exchange/data_dark": blank}))[FrameKind.DARK]), blank)


def test_calibration_can_be_left_out_on_request(path):
    played = frames(
        written(path, {"/exchange/data_white": None, "/exchange/data_dark": None}), flats="none", darks="none"
    )
    assert [len(played[kind]) for kind in (FrameKind.DARK, FrameKind.FLAT, FrameKind.PROJECTION)] == [0, 0, 9]


def test_datasets_may_have_other_names(path):
    moved = {name.replace("exchange", "raw"): values for name, values in scan_datasets().items()}
    written(path, dict.fromkeys(scan_datasets()) | moved)
    played = frames(path, data="raw/data", flats="/raw/data_white", darks="raw/data_dark", theta="raw/theta")
    np.testing.assert_array_equal(pixels(played[FrameKind.PROJECTION]), DATA)


@pytest.mark.parametrize("prefix", ["rotation_", ""])
@pytest.mark.parametrize("stated", [None, [9]])
def test_rotation_start_and_step_stand_in_for_theta(path, prefix, stated):
    rotation = f"{ACQUISITION}/rotation"
    written(
        path,
        {
            "/exchange/theta": None,
            f"{rotation}/{prefix}start": [10.0],
            f"{rotation}/{prefix}step": 0.5,
            f"{rotation}/num_angles": stated,
        },
    )
    played = frames(path)[FrameKind.PROJECTION]
    np.testing.assert_allclose([f.angle_rad for f in played], np.deg2rad(10 + 0.5 * np.arange(9)))


@pytest.mark.parametrize(("units", "factor"), [("degrees", 1), ("deg", 1), ("Degree", 1), ("rad", 180 / np.pi)])
def test_units_of_the_angles(path, units, factor):
    written(path, {"/exchange/theta": THETA / factor}, {("/exchange/theta", "units"): units})
    np.testing.assert_allclose([f.angle_rad for f in frames(path)[FrameKind.PROJECTION]], np.deg2rad(THETA))


def test_the_first_part_of_an_aborted_scan_can_be_played(path):
    written(path, {"/exchange/theta": np.arange(20.0)})
    assert len(frames(path, projections=[0, 9])[FrameKind.PROJECTION]) == 9
    written(path, {"/exchange/theta": THETA[:5]})
    assert len(frames(path, projections=[0, 5])[FrameKind.PROJECTION]) == 5


@pytest.mark.parametrize(
    ("datasets", "size_um"),
    [
        ({"detection_system/objective/resolution": (650.0, "nm")}, 0.65),
        ({"detection_system/resolution": (0.00065, "mm")}, 0.65),
        ({"detector/pixel_size": (6.5, "um"), "detection_system/objective/magnification": (10.0, None)}, 0.65),
        ({"detector/pixel_size_x": (6.5, "µm"), "detection_system/objective/magnification": (10, None)}, 0.65),
        ({"detector/pixel_size": (6.5, "um")}, None),
        ({"detector/pixel_size": (6.5, "um"), "detection_system/objective/magnification": (0.0, None)}, None),
        ({"detector/pixel_size": (6.5, "um"), "detection_system/objective/magnification": (b"10x", None)}, None),
        ({"detection_system/objective/resolution": (0.65, None)}, None),
        ({"detection_system/objective/resolution": (0.65, "furlong")}, None),
        ({"detection_system/objective/resolution": (-1.0, "um")}, None),
        ({"detection_system/objective/resolution": (np.inf, "um")}, None),
        ({"detection_system/objective/resolution": (b"0.65", "um")}, None),
    ],
)
def test_pixel_size_at_the_sample(path, datasets, size_um):
    values = {f"{INSTRUMENT}/{name}": value for name, (value, _) in datasets.items()}
    units = {(f"{INSTRUMENT}/{name}", "units"): units for name, (_, units) in datasets.items() if units}
    written(path, values, units)
    with opened(path) as source:
        assert source.describe().pixel_size_um == (None if size_um is None else pytest.approx(size_um))
    with opened(path, pixel_size_um=1.5) as source:
        assert source.describe().pixel_size_um == 1.5


@pytest.mark.parametrize(("energy", "units", "kev"), [(27_400.0, "eV", 27.4), (27.4, "keV", 27.4), (0.0, "keV", None)])
def test_energy(path, energy, units, kev):
    name = f"{INSTRUMENT}/monochromator/energy"
    written(path, {name: energy}, {(name, "units"): units})
    with opened(path) as source:
        assert source.describe().energy_kev == (None if kev is None else pytest.approx(kev))


def test_a_quantity_without_units_is_left_out_with_a_warning(path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ministream"), "propagate", True)
    name = f"{INSTRUMENT}/monochromator/energy"
    with opened(written(path, {name: [27.4]})) as source:
        assert source.describe().energy_kev is None
    assert str(path) in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize(
    "name", ["Zahn", np.bytes_("Zahn"), np.array(["Zahn"], dtype="S8"), np.array([b"Zahn\n", b"x"])]
)
def test_sample_name_in_any_form(path, name):
    with opened(written(path, {"/measurement/sample/name": name})) as source:
        assert source.describe().sample == "Zahn"


@pytest.mark.parametrize("name", [b"\xff\xfe", 3.0, "x" * 5000])
def test_any_sample_name_fits_the_wire(path, name):
    with opened(written(path, {"/measurement/sample/name": name})) as source:
        assert len(source.describe().sample) <= 256
        assert source.describe().sample.isprintable()


COMPLEX = DATA.astype(np.complex64)
BAD_FILES = {
    "no projections": (
        {"/exchange/data": None},
        {},
        r"/exchange/data is missing .*data_dark.*--set source\.data=NAME",
    ),
    "group for projections": ({"/exchange/data": None, "/exchange/data/x": [1]}, {}, "/exchange/data is a group"),
    "no flats": (
        {"/exchange/data_white": None},
        {},
        r"flats are missing.*data_white.*--set source\.flats=none",
    ),
    "no darks": (
        {"/exchange/data_dark": None},
        {},
        r"darks are missing.*data_dark.*--set source\.darks=none",
    ),
    "empty flats": ({"/exchange/data_white": np.empty((0, 4, 6))}, {}, "flats are missing"),
    "flats of another shape": (
        {"/exchange/data_white": FLATS[:, :3]},
        {},
        "data_white has images of 3 x 6 pixels, expected .*4 x 6",
    ),
    "darks of another shape": (
        {"/exchange/data_dark": DARKS[..., :5]},
        {},
        "data_dark has images of 4 x 5 pixels.*4 x 6",
    ),
    "one row of a flat": ({"/exchange/data_white": FLATS[0, 0]}, {}, r"data_white has shape \(6,\)"),
    "no angles": ({"/exchange/theta": None}, {}, "angles are missing: neither /exchange/theta nor .*rotation_start"),
    "fewer angles": (
        {"/exchange/theta": THETA[:7]},
        {},
        r"theta says 7 angles.*9 projections.*projections=\[0,7\]",
    ),
    "more angles": ({"/exchange/theta": np.arange(11.0)}, {}, r"theta says 11 angles.*9 projections.*\[0,9\]"),
    "no angle at all": ({"/exchange/theta": np.empty(0)}, {}, "theta says 0 angles.*damaged"),
    "no finite angle": ({"/exchange/theta": np.full(9, np.nan)}, {}, "can be played: 0 were never .*9 have no angle"),
    "angles in words": (
        {"/exchange/theta": np.array([b"one"] * 9)},
        {},
        r"/exchange/theta holds \|S3, expected numbers",
    ),
    "angles in gradians": ({}, {("/exchange/theta", "units"): "gon"}, "/exchange/theta has units 'gon'"),
    "complex pixels": ({"/exchange/data": COMPLEX}, {}, "/exchange/data holds complex64: pixels must be"),
    "text pixels": ({"/exchange/data": DATA.astype("S5")}, {}, r"/exchange/data holds \|S5: pixels must be"),
    "truth values": ({"/exchange/data": DATA > 9}, {}, "/exchange/data holds bool: pixels must be"),
    "quadruple precision": ({"/exchange/data": DATA.astype(np.longdouble)}, {}, "data holds float128: pixels must be"),
    "no projection": ({"/exchange/data": DATA[:0], "/exchange/theta": []}, {}, r"data has shape \(0, 4, 6\)"),
    "no columns": ({"/exchange/data": DATA[..., :0]}, {}, r"data has shape \(9, 4, 0\)"),
    "one sinogram": ({"/exchange/data": DATA[:, 0]}, {}, r"data has shape \(9, 6\): it must be \[image, row, column\]"),
    "empty dataspace": ({"/exchange/data": h5py.Empty("u2")}, {}, r"data has shape \(\)"),
    "two angles": ({}, {("/exchange/data", "axes"): "theta:theta:x"}, "axes theta:theta:x, expected theta, y and x"),
    "broken link": (
        {"/exchange/data": h5py.SoftLink("/gone")},
        {},
        "/exchange/data cannot be read.*link in it leads nowhere",
    ),
    "lost file": (
        {"/exchange/data": h5py.ExternalLink("gone.h5", "/data")},
        {},
        "the link /exchange/data leads to .*gone.h5, which is missing",
    ),
    "too few stated": (
        {"/exchange/theta": None, f"{ACQUISITION}/rotation/start": 0, f"{ACQUISITION}/rotation/step": 1}
        | {f"{ACQUISITION}/rotation/num_angles": [7]},
        {},
        r"num_angles says 7 angles.*projections=\[0,7\]",
    ),
    "nonsense stated": (
        {"/exchange/theta": None, f"{ACQUISITION}/rotation/start": 0, f"{ACQUISITION}/rotation/step": 1}
        | {f"{ACQUISITION}/rotation/num_angles": np.nan},
        {},
        "num_angles says nan angles.*damaged",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_scan_is_refused_with_file_dataset_and_remedy(path, case):
    changes, attributes, message = BAD_FILES[case]
    links = {n: v for n, v in changes.items() if isinstance(v, (h5py.SoftLink, h5py.ExternalLink))}
    written(path, changes | dict.fromkeys(links), attributes)
    with h5py.File(path, "a") as file:
        for name, link in links.items():
            file[name] = link
    with pytest.raises(InputError, match=message) as caught:
        opened(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [2, 9]}, r"rows = \[2, 9\].*rows 0 to 3"),
        ({"rows": [2, 2]}, r"rows = \[2, 2\]"),
        ({"rows": [-1, 2]}, r"rows = \[-1, 2\]"),
        ({"rows": [1]}, "rows"),
        ({"rows": [0.5, 2.0]}, "rows"),
        ({"projections": [0, 10]}, r"projections = \[0, 10\].*projections 0 to 8"),
        ({"every": 0}, "every = 0"),
        ({"axis": 6.0}, r"axis = 6 is outside the detector's columns 0 to 5"),
        ({"axis": -0.5}, r"axis = -0.5 is outside"),
        ({"pixel_size_um": 0.0}, "pixel_size_um = 0.0"),
        ({"flat": "none"}, r"unknown key flat \(did you mean flats"),
    ],
)
def test_wrong_options_are_named(path, options, message):
    with pytest.raises(ConfigError, match=message):
        opened(written(path), **options)


def test_a_file_is_needed():
    with pytest.raises(ConfigError, match=r"\[source\] dxchange: file.*required"):
        open_source(config.SourceSection(kind="dxchange"), order="sequential", repeat=1)


def test_missing_file(path):
    with pytest.raises(InputError, match=f"{path}: no such file"):
        opened(path)


def test_directory(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"", b"theta,counts\n0,1\n", b"\x89HDF\r\n\x1a\n"])
def test_other_files(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: (is not an HDF5 file|cannot be opened)"):
        opened(path)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_truncated_file(path, part):
    whole = written(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=f"{path}: cannot be opened: .*cut short, copy it again"):
        opened(path)


def test_damaged_pixels_are_found_when_they_are_read(path):
    written(path, chunks=(1, 4, 6), fletcher32=True)
    with h5py.File(path) as file:
        offset = file["/exchange/data"].id.get_chunk_info(5).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 0xFF
    path.write_bytes(content)
    with opened(path) as source, pytest.raises(InputError, match=f"{path}: /exchange/data, image 5 cannot be read"):
        list(source.frames())


@pytest.mark.parametrize("at", range(100, 2000, 100))
def test_damaged_structure_is_an_input_error_or_harmless(path, at):
    """Whatever part of the file's structure is overwritten: no other exception, no crash."""
    content = bytearray(written(path).read_bytes())
    content[at : at + 60] = b"\xa5" * 60
    path.write_bytes(content)
    try:
        with opened(path) as source:
            assert len(list(source.frames())) == 14
    except InputError as error:
        assert str(path) in str(error)


def test_pixels_of_a_type_without_equivalent(path):
    written(path, {"/exchange/data": None})
    with h5py.File(path, "a") as file:
        h5py.h5d.create(file["exchange"].id, b"data", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((9, 4, 6)))
    with pytest.raises(InputError, match="/exchange/data is of an HDF5 type that cannot be read"):
        opened(path)


def test_compression_that_is_not_installed(path):
    written(path, {"/exchange/data": None})
    with h5py.File(path, "a") as file:
        file.create_dataset(
            "exchange/data", DATA.shape, "u2", chunks=(1, 4, 6), compression=511, allow_unknown_filter=True
        )
    with pytest.raises(InputError, match=r"HDF5 filter 511: install the codecs, pip install 'ministream\[codecs\]'"):
        opened(path)


def test_compression_that_hdf5plugin_brings(path):
    """In processes of their own, because the plug-in stays loaded once it is."""
    pytest.importorskip("hdf5plugin")
    write = f"""
import h5py, hdf5plugin, numpy as np
with h5py.File({str(path)!r}, "a") as file:
    file.create_dataset("exchange/data", data=np.arange(216, dtype="u2").reshape(9, 4, 6), **hdf5plugin.Bitshuffle())
"""
    read = f"""
from ministream import config
from ministream.source import open_source
section = config.SourceSection(kind="dxchange", file={str(path)!r})
with open_source(section, order="sequential", repeat=1) as source:
    print(sum(int(frame.pixels.sum()) for frame in source.frames() if frame.kind == 1))
"""
    written(path, {"/exchange/data": None})
    for script, output in ((write, ""), (read, f"{sum(range(216))}\n")):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, output), done.stderr


def test_a_file_that_is_refused_is_closed(path, monkeypatch):
    closed = []
    close = _hdf5.DataFile.close
    monkeypatch.setattr(_hdf5.DataFile, "close", lambda self: (closed.append(self.path), close(self)))
    with pytest.raises(InputError):
        opened(written(path, {"/exchange/theta": None}))
    assert closed == [path]


def test_home_is_found(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    assert len(frames(Path("~") / written(path).name)[FrameKind.PROJECTION]) == 9
