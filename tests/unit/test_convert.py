"""`ministream convert`: every format, read back by its own reader, with the volume's provenance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from ministream import registry
from ministream.cli import cli
from ministream.errors import ConfigError, InputError, MachineError, StorageError
from ministream.storage import exports, read_volume
from ministream.storage.exports import _pyramid
from tests.unit.one_rank import COMPLETE, random_image, state, volume_writer

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")
omezarr = pytest.importorskip("ministream.storage.exports.zarr")

MISSING = ["9 sent, 8 received", "1 projection refused (checksum)"]
SUFFIXES = [".tif", ".zarr", ".png", ".mp4"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder of a run: two snapshots and an incomplete volume of 5 × 33 × 33 voxels of 2 µm."""
    folder = tmp_path_factory.mktemp("results")
    writer = volume_writer(folder, pixel_size_um=2.0, sample="shale")
    for number in (1, 2):
        writer.snapshot(number, random_image(5, 33, 5) * number, state())
        writer.finish()
    writer.final(random_image(5, 33, 5) * 3, state())
    return folder


def convert(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)], catch_exceptions=True)


def done(*arguments: Any) -> None:
    result = convert(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)


def details_in(path: Path) -> tuple[str, dict[str, Any]]:
    """Title and provenance, as the format carries them."""
    if path.suffix == ".zarr":
        attributes = zarr.open_group(path, mode="r").attrs.asdict()
        return attributes["ome"]["multiscales"][0]["name"], attributes["ministream"]
    if path.suffix == ".png":
        text = Image.open(path).text
        return text["Title"], json.loads(text["Description"])
    if path.suffix == ".mp4":
        with av.open(str(path)) as film:
            return film.metadata["title"], json.loads(film.metadata["comment"])
    with tifffile.TiffFile(path) as file:
        lines = dict(line.split(": ", 1) for line in file.imagej_metadata["Info"].splitlines())
        return lines["title"], lines


def test_the_suffixes_are_the_formats():
    assert {exports.format_of(Path(f"x{suffix}")) for suffix in SUFFIXES} == set(registry.names(exports.__name__))
    assert exports.format_of(Path("x.ome.ZARR")) == "zarr"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_says_where_the_volume_comes_from_and_what_is_missing(results, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    result = convert(results, out, "--workers", 1)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "INCOMPLETE: 9 sent, 8 received" in result.output
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
    title, details = details_in(out)
    assert title == f"shale, scan s-1, INCOMPLETE: {'; '.join(MISSING)}"
    assert str(details["missing"]) == str(MISSING)
    assert (details["scan_id"], details["sample"], str(details["complete"])) == ("s-1", "shale", "False")
    assert float(details["axis_col"]) == 16.25
    assert details["program"] == "ministream"
    assert {"version", "algorithm", "config", "updates", "projections_used"} <= set(details)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_complete_volume_is_not_marked(tmp_path, suffix):
    writer = volume_writer(tmp_path, sample="shale")
    writer.snapshot(1, random_image(5, 33, 5), state(**COMPLETE))
    writer.final(random_image(5, 33, 5), state(**COMPLETE))
    done(tmp_path, tmp_path / f"out{suffix}", "--workers", 1)
    title, details = details_in(tmp_path / f"out{suffix}")
    assert title == "shale, scan s-1"
    assert str(details["complete"]) == "True"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_output_that_exists_is_replaced_only_on_request(results, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    done(results, out, "--workers", 1)
    with pytest.raises(ConfigError, match="replace it with --overwrite"):
        raise convert(results, out, "--workers", 1).exception
    done(results, out, "--workers", 1, "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
    details_in(out)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_what_was_there(results, tmp_path, suffix, monkeypatch):
    out = tmp_path / f"out{suffix}"
    done(results, out, "--workers", 1)
    before = details_in(out)
    module = exports.open_format(exports.format_of(out))

    def disk_full(export: Any, part: Path) -> None:
        write(export, part)
        raise OSError(28, "No space left on device")

    write = module.write
    monkeypatch.setattr(module, "write", disk_full)
    with pytest.raises(StorageError, match="No space left on device"):
        raise convert(results, out, "--workers", 1, "--overwrite").exception
    assert details_in(out) == before
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_imagej_gets_the_values_with_voxel_size_and_labels(results, tmp_path):
    out = tmp_path / "out.tif"
    done(results, out)
    with tifffile.TiffFile(out) as file:
        np.testing.assert_array_equal(file.asarray(), read_volume(results / "recon.h5"))
        known = file.imagej_metadata
        assert (known["images"], known["slices"], known["spacing"], known["unit"]) == (5, 5, 2.0, "um")
        assert known["min"] < known["max"]
        assert known["Labels"][4] == "slice 4 INCOMPLETE"
        across, pixels = file.pages[0].tags["XResolution"].value
        assert across / pixels == pytest.approx(0.5)


def test_a_stack_too_large_for_tiff_has_one_page_as_imagej_writes_it(results, tmp_path, monkeypatch):
    monkeypatch.setattr(exports.open_format("tiff"), "MOST_BYTES", 1000)
    done(results, tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 1
        np.testing.assert_array_equal(file.asarray(), read_volume(results / "recon.h5"))


def test_a_picture_has_the_plane_above_its_caption(results, tmp_path):
    out = tmp_path / "out.png"
    done(results, out, "--plane", "y", "--index", 7, "--range", "0:20000")
    plane = read_volume(results / "recon.h5")[:, 7]
    factor = 15  # 33 columns become 495
    shown = np.asarray(Image.open(out))
    assert shown.shape[1] == 496
    expected = np.clip(plane * (255 / 20000), 0, 255).round()
    np.testing.assert_array_equal(shown[: 5 * factor : factor, : 33 * factor : factor], expected)
    assert shown[5 * factor :].any()


def test_a_film_shows_the_snapshots_and_then_the_volume(results, tmp_path):
    out = tmp_path / "out.mp4"
    done(results, out, "--range", "0:15000", "--fps", 2)
    with av.open(str(out)) as film:
        stream = film.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 2)
        frames = [frame.to_ndarray(format="gray") for frame in film.decode(stream)]
    # the image grows from moment to moment
    brightness = [frame[:495, :495].mean() for frame in frames]
    assert len(frames) == 3
    assert brightness[1] / brightness[0] == pytest.approx(2, rel=0.1)
    assert brightness[2] / brightness[0] == pytest.approx(3, rel=0.1)


def test_a_film_needs_snapshots_of_one_run(results, tmp_path):
    alone = volume_writer(tmp_path).final(random_image(5, 33, 5), state())
    with pytest.raises(InputError, match="no snapshots beside it"):
        raise convert(alone, tmp_path / "out.mp4").exception
    with h5py.File(tmp_path / "000001-recon.h5", "w") as file:
        file["data"] = np.zeros((2, 3, 3), np.float32)
    with pytest.raises(InputError, match="not from one run"):
        raise convert(alone, tmp_path / "out.mp4").exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.jpg"], r"choose a name that ends with \.mp4, \.png, \.tiff, \.zarr"),
        (["out"], "no format has the suffix ''"),
        (["none/out.tif"], "Create it first"),
        (["out.png", "--plane", "w"], r"expected z \(a slice\)"),
        (["out.png", "--index", "5"], "has planes 0 to 4 along z"),
        (["out.png", "--range", "2:1"], "the smaller one first"),
        (["out.png", "--range", "dark"], "the smaller one first"),
        (["out.zarr", "--overwrite"], "not a Zarr folder"),
        (["folder.tif", "--overwrite"], "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before(results, tmp_path, arguments, message):
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr" / "precious").touch()
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(ConfigError, match=message):
        raise convert(results, tmp_path / arguments[0], *arguments[1:]).exception
    assert (tmp_path / "out.zarr" / "precious").exists()


def test_a_format_without_its_package_names_the_extra(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr.codecs", None)
    monkeypatch.delitem(sys.modules, omezarr.__name__)
    with pytest.raises(ConfigError, match=r"pip install 'ministream\[convert\]'"):
        raise convert(results, tmp_path / "out.zarr").exception


def test_a_volume_of_another_program_is_converted_without_a_claim(tmp_path):
    with h5py.File(tmp_path / "tomopy.h5", "w") as file:
        file["recon"] = np.arange(18, dtype=np.float64).reshape(2, 3, 3)
    done(tmp_path / "tomopy.h5", tmp_path / "out.tif", "--dataset", "recon")
    title, details = details_in(tmp_path / "out.tif")
    assert title == "scan tomopy"
    assert "complete" not in details


# ── OME-Zarr ──


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A volume of 70 × 150 × 150: two chunks high, several shards at small limits."""
    folder = tmp_path_factory.mktemp("large")
    image = random_image(70, 150, 70)
    return volume_writer(folder, rows=70, n=150, pixel_size_um=2.0).final(image, state())


@pytest.fixture(scope="module")
def pyramid(large, tmp_path_factory) -> Iterator[Path]:
    """The same as OME-Zarr, written by two processes in shards of at most 4 MiB."""
    out = tmp_path_factory.mktemp("zarr") / "out.ome.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pyramid, "SHARD_BYTES", 4 << 20)
        done(large, out, "--workers", 2)
    yield out


def halved(volume: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 × 2 voxels, at odd ends of fewer."""
    padded = np.pad(volume, [(0, size % 2) for size in volume.shape], constant_values=np.nan)
    z, y, x = (size // 2 for size in padded.shape)
    return np.nanmean(padded.reshape(z, 2, y, 2, x, 2), axis=(1, 3, 5))


def test_the_levels_hold_the_volume_and_its_means(large, pyramid):
    group, expected = zarr.open_group(pyramid, mode="r"), read_volume(large)
    for number in range(3):
        array = group[str(number)]
        assert array.shape == expected.shape
        assert np.prod(array.chunks) * 4 <= 1 << 20
        np.testing.assert_allclose(array[:], expected, rtol=1e-5)
        if number < 2:
            expected = halved(expected)
    assert group["0"].shards == (64, 64, 192)
    assert sorted(group.array_keys()) == ["0", "1", "2"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 33, 33), (70, 150, 150), (3, 2000, 2000), (900, 5000, 5000)])
def test_shards_are_whole_chunks_and_tile_every_level(shape):
    for level in _pyramid.levels(shape):
        assert all(shard % chunk == 0 for shard, chunk in zip(level.shard, level.chunk, strict=True))
        assert np.prod(level.chunk) * 4 <= 1 << 20
        assert np.prod(level.shard) * 4 <= _pyramid.SHARD_BYTES
        count = np.zeros([-(-a // b) for a, b in zip(level.shape, level.shard, strict=True)], int)
        for box in level.shards():
            assert all(side.start % step == 0 for side, step in zip(box, level.shard, strict=True))
            count[tuple(side.start // step for side, step in zip(box, level.shard, strict=True))] += 1
        assert (count == 1).all()
    assert max(level.shape) <= _pyramid.CHUNK


READ = """
import json, sys
import numpy as np
from ome_zarr.io import parse_url
from ome_zarr.reader import Multiscales, Reader
(node, *_) = Reader(parse_url(sys.argv[1]))()
(spec,) = [spec for spec in node.specs if isinstance(spec, Multiscales)]
print(json.dumps({
    "version": node.zarr.version,
    "shapes": [level.shape for level in node.data],
    "sums": [float(np.asarray(level, np.float64).sum()) for level in node.data],
    "metadata": {name: node.metadata[name] for name in ("axes", "coordinateTransformations", "name")},
}))
"""


@pytest.fixture(scope="module")
def ome_zarr(tmp_path_factory) -> Path:
    """A folder with ome-zarr and what its reader imports; all that it requires would be four times as much."""
    target = tmp_path_factory.mktemp("ome_zarr")
    packages = ["ome-zarr==0.18.0", "ome-zarr-models==1.7", "pydantic-zarr==0.9.2", "dask==2026.8.0", "toolz", "fsspec"]
    packages += ["importlib_metadata", "zipp", "lazy-importer", "Deprecated", "wrapt", "rangehttpserver", "pyyaml"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *packages]
    installed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    if installed.returncode != 0:
        pytest.skip(f"ome-zarr cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return target


@pytest.mark.slow
def test_the_reader_of_ome_zarr_reads_it(ome_zarr, large, pyramid):
    path = os.pathsep.join([str(ome_zarr), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", READ, str(pyramid)]
    read = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, check=False, capture_output=True, text=True, timeout=120
    )
    assert read.returncode == 0, read.stderr
    found, metadata = json.loads(read.stdout), json.loads(read.stdout)["metadata"]
    assert found["version"] == "0.5"
    assert found["shapes"] == [[70, 150, 150], [35, 75, 75], [18, 38, 38]]
    assert found["sums"][0] == pytest.approx(read_volume(large).astype(np.float64).sum())
    assert metadata["axes"] == [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    assert metadata["coordinateTransformations"][1] == [
        {"type": "scale", "scale": [4.0] * 3},
        {"type": "translation", "translation": [1.0] * 3},
    ]


def test_a_process_that_is_killed_ends_the_conversion():
    with pytest.raises(MachineError, match="Use fewer processes with --workers"), omezarr._processes(2) as each:
        each(os._exit, iter([9] * 8))
    assert "MPI4PY_RC_INITIALIZE" not in os.environ


def test_the_first_error_of_a_process_is_the_one_that_is_raised(results, tmp_path):
    nowhere = omezarr._FromVolume(source=results / "none.h5", dataset="/data", folder=tmp_path)
    with pytest.raises(InputError, match=r"none\.h5: no such file"), omezarr._processes(2) as each:
        each(nowhere, _pyramid.boxes((8, 8, 8), (1, 8, 8)))
