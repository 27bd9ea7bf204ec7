"""Recorded scans in TIFF files: folders, patterns, stacks of pages, and every way to be wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from ministream import config
from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.source import open_source

RANDOM = np.random.default_rng(0)
DATA = RANDOM.integers(1000, 4000, (12, 5, 8)).astype(np.uint16)
FLATS = RANDOM.integers(4000, 5000, (3, 5, 8)).astype(np.uint16)
DARKS = RANDOM.integers(50, 100, (2, 5, 8)).astype(np.uint16)
STEP = {"step": 15.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file per image; the numbers have no leading zeros."""
    path = tmp_path / "scan"
    path.mkdir()
    for name, stack in (("p_", DATA), ("flat_", FLATS), ("dark_", DARKS)):
        for k, image in enumerate(stack):
            tifffile.imwrite(path / f"{name}{k}.tif", image)
    (path / "notes.txt").write_text("not an image")
    return path


def played(path: Path, order: str = "sequential", **options: Any) -> tuple[Scan, dict[FrameKind, list[Frame]]]:
    section = config.SourceSection(kind="tiff", file=str(path), **{"angles": STEP} | options)
    with open_source(section, order=order, repeat=1) as source:
        frames = list(source.frames())
        return source.describe(), {kind: [f for f in frames if f.kind is kind] for kind in FrameKind}


def pixels(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.pixels for frame in frames])


def test_a_folder(folder: Path) -> None:
    scan, frames = played(folder)
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA)
    np.testing.assert_array_equal(pixels(frames[FrameKind.FLAT]), FLATS)
    np.testing.assert_array_equal(pixels(frames[FrameKind.DARK]), DARKS)
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), np.arange(12) * 15)
    assert (scan.projections, scan.flats, scan.darks, scan.dtype, scan.sample) == (12, 3, 2, "<u2", "scan")


def test_patterns_and_folders_of_calibration(folder: Path) -> None:
    for name in ("flats_before", "flats_after"):
        (folder / name).mkdir()
    for k in range(3):
        (folder / f"flat_{k}.tif").rename(folder / ("flats_before" if k < 2 else "flats_after") / f"{k}.tif")
    scan, frames = played(folder / "p_*.tif", flats=["flats_before", "flats_after"], darks="none", rows=[1, 4])
    assert scan.darks == 0
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA[:, 1:4])
    np.testing.assert_array_equal(pixels(frames[FrameKind.FLAT]), FLATS[:, 1:4])
    assert [frame.position for frame in frames[FrameKind.FLAT]] == [0, 0, 12]
    _, frames = played(folder, flats=["flats_before", "flats_after"], flats_at=[3, 9])
    assert [frame.position for frame in frames[FrameKind.FLAT]] == [3, 3, 9]


@pytest.mark.parametrize(
    "options", [{}, {"imagej": True}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib"}]
)
@pytest.mark.parametrize("order", ["sequential", "golden-angle"])
def test_a_file_with_many_pages(tmp_path: Path, options: dict[str, Any], order: str) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, DATA, **{"photometric": "minisblack"} | options)
    _, frames = played(path, order, flats="none", darks="none")
    place = [round(frame.position) for frame in frames[FrameKind.PROJECTION]]
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA[place])
    assert sorted(place) == list(range(12))


def test_a_stack_that_describes_its_first_page_alone(tmp_path: Path) -> None:
    """ImageJ writes stacks larger than 4 GiB like that."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, DATA, imagej=True)
    with tifffile.TiffFile(path, mode="r+b") as file:
        next_page = file.pages.first.offset + 2 + 12 * len(file.pages.first.tags)
        file.filehandle.seek(next_page)
        file.filehandle.write(b"\0\0\0\0")
    _, frames = played(path, flats="none", darks="none")
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA)
    os.truncate(path, 1000)
    with pytest.raises(InputError, match="cut short"):
        played(path, flats="none", darks="none")


def test_angles_from_a_file(folder: Path) -> None:
    angles = np.linspace(0, 180, 12)
    path = folder / "angles.txt"
    path.write_text("# degrees\n" + "\n".join(map(str, angles)))
    _, frames = played(folder, angles=None, angles_file=str(path))
    np.testing.assert_allclose(np.rad2deg([f.angle_rad for f in frames[FrameKind.PROJECTION]]), angles)
    _, frames = played(folder, angles=None, angles_file=str(path), angle_unit="radians")
    np.testing.assert_allclose([f.angle_rad for f in frames[FrameKind.PROJECTION]], angles)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", ">u2"])
def test_pixels_keep_their_type(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "stack.tif"
    stack = (DATA // 32).astype(dtype)
    tifffile.imwrite(path, stack, photometric="minisblack")
    scan, frames = played(path, flats="none", darks="none")
    assert scan.dtype == np.dtype(dtype).newbyteorder("=").str
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), stack)


def test_non_finite_pixels_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    stack = DATA.astype(np.float32)
    stack[3, 1, 1], stack[4, 2, 2] = np.nan, np.inf
    tifffile.imwrite(path, stack, photometric="minisblack")
    np.testing.assert_array_equal(pixels(played(path, flats="none", darks="none")[1][FrameKind.PROJECTION]), stack)


def test_signed_counts_are_refused_or_read_as_unsigned(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    stack = DATA + np.uint16(40_000)
    tifffile.imwrite(path, stack.view("i2"), photometric="minisblack")
    with pytest.raises(InputError, match=r"negative, expected counts.*--set source\.unsigned=true"):
        played(path, flats="none", darks="none")
    _, frames = played(path, flats="none", darks="none", unsigned=True)
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), stack)


def test_missing_files_are_named_with_remedies_that_work(folder: Path) -> None:
    with pytest.raises(InputError, match=r"angles are missing, and TIFF has none.*--set 'source\.angles="):
        played(folder, angles=None)
    for k in range(3):
        (folder / f"flat_{k}.tif").unlink()
    with pytest.raises(InputError, match=r"flats are missing: no TIFF files match \*flat\*.*--set source\.flats=none"):
        played(folder)
    assert played(folder, flats="none")[0].flats == 0
    with pytest.raises(InputError, match="no TIFF files match bright"):
        played(folder, flats=["dark_*", "bright*"])
    with pytest.raises(InputError, match=r"no TIFF files of projections.*--set source\.file=PATTERN"):
        played(folder / "none_*", flats="none", darks="none")
    with pytest.raises(InputError, match="no TIFF files of projections"):
        played(folder / "absent" / "stack.tif", flats="none", darks="none")


def test_wrong_angles_are_refused(folder: Path) -> None:
    path = folder / "angles.txt"
    for text, message in (
        ("1\n2\n", r"angles of shape \(2,\), expected 12"),
        ("one\n", "expected one number per line"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            played(folder, angles=None, angles_file=str(path))
    with pytest.raises(InputError, match="angles cannot be read"):
        played(folder, angles=None, angles_file=str(folder / "absent.txt"))


def test_images_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    tifffile.imwrite(folder / "p_12.tif", np.zeros((5, 9), np.uint16))
    with pytest.raises(InputError, match=r"p_12\.tif has images of 5 x 9 pixels, .*p_0\.tif of 5 x 8"):
        played(folder)
    (folder / "p_12.tif").unlink()
    tifffile.imwrite(folder / "flat_3.tif", np.zeros((4, 8), np.uint16))
    with pytest.raises(InputError, match=r"flat_3\.tif has images of 4 x 8 pixels"):
        played(folder)
    with pytest.raises(InputError, match=r"flats flat_3\.tif have 4 x 8 pixels, expected 5 x 8"):
        played(folder, flats="flat_3.tif")
    colour = tmp_path / "colour.tif"
    tifffile.imwrite(colour, np.zeros((5, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match=r"shape \(5, 8, 3\).*expected grey images"):
        played(colour, flats="none", darks="none")


@pytest.mark.parametrize("odd", ["p_5.tif", "p_005.tif"])
def test_files_whose_numbers_skip_or_repeat_are_refused_where_angles_count_them(folder: Path, odd: str) -> None:
    if odd == "p_5.tif":
        (folder / odd).unlink()
    else:
        tifffile.imwrite(folder / odd, DATA[5])
    with pytest.raises(InputError, match=r"p_.*tif follows p_.*tif, expected .* equal steps.*source\.angles_file=FILE"):
        played(folder)
    kept = [k for k in range(12) if k != 5] if odd == "p_5.tif" else [*range(6), *range(5, 12)]
    path = folder / "angles.txt"
    path.write_text("".join(f"{15 * k}\n" for k in kept))
    scan, frames = played(folder, angles=None, angles_file=str(path))
    np.testing.assert_array_equal(pixels(frames[FrameKind.PROJECTION]), DATA[kept])
    assert scan.projections == len(kept)


def test_numbers_in_equal_steps_are_fine(folder: Path) -> None:
    for k in range(12):
        (folder / f"p_{k}.tif").rename(folder / f"scan2_{10 * k + 3:04d}_bin4.tif")
    np.testing.assert_array_equal(pixels(played(folder)[1][FrameKind.PROJECTION]), DATA)


@pytest.mark.parametrize("content", [b"", b"II", b"not a tiff", b"II*\0\x08\0\0\0"])
def test_damaged_files_are_refused(folder: Path, content: bytes) -> None:
    (folder / "p_3.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"p_3\.tif"):
        played(folder)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_files_are_refused(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "stack.tif"
    noise = RANDOM.integers(0, 60_000, (4, 50, 80)).astype(np.uint16)
    tifffile.imwrite(path, noise, photometric="minisblack", compression=compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.7)])
    with pytest.raises(InputError, match=r"stack\.tif.*(cut short|damaged)"):
        played(path, flats="none", darks="none")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, DATA, photometric="minisblack")
    section = config.SourceSection(kind="tiff", file=str(path), angles=STEP, flats="none", darks="none")
    with open_source(section, order="sequential", repeat=1) as source:
        frames = source.frames()
        next(frames)
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(InputError, match=r"shrank|cannot be read as TIFF"):
            list(frames)


def test_options_of_recordings_hold_here_too(folder: Path) -> None:
    scan, frames = played(folder, exclude=[0, [2, 4]], every=2, binning=2, cols=[1, 7], pixel_size_um=2.0)
    assert [frame.position for frame in frames[FrameKind.PROJECTION]] == [4, 6, 8, 10]
    assert (scan.rows, scan.cols, scan.pixel_size_um) == (2, 3, 4.0)
    with pytest.raises(ConfigError, match="projections"):
        played(folder, projections=[0, 13])
