"""Volumes written by one rank: layout, schema, readers, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ministream import atomic, storage
from ministream.errors import InputError, MachineError, StorageError
from ministream.model import Slab
from ministream.storage import layout
from ministream.storage.reserve import reserve
from tests.unit.one_rank import Alone, random_image, scan, state, volume_writer

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("how", ["auto", "direct", "hdf5"])
def test_a_snapshot_holds_the_image_slice_first(tmp_path, how):
    image = random_image(5, 33, 16)
    writer = volume_writer(tmp_path / "new" / "folder", how=how)
    path = writer.snapshot(12, image, state())
    writer.finish()
    assert path.name == "000012-recon.h5"
    assert np.array_equal(storage.read_volume(path), image.transpose(2, 0, 1)[:5])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_says_what_it_is(tmp_path):
    writer = volume_writer(tmp_path, pixel_size_um=2.5, energy_kev=25.0, sample="shale")
    with h5py.File(writer.final(random_image(5, 33, 5), state(quality={"ssim": 0.9})), "r") as file:
        data, job = file["data"], file.attrs
        assert (data.attrs["units"], data.attrs["pixel_size_um"]) == ("1/cm", 2.5)
        assert data.attrs["scale_to_per_pixel"] == pytest.approx(1 / 4000.0)
        assert (data.attrs["axis_col"], data.attrs["angle_min_deg"], data.attrs["angle_max_deg"]) == (16.25, 0.0, 180.0)
        assert (job["scan_id"], job["sample"], job["energy_kev"]) == ("s-1", "shale", 25.0)
        assert (job["projections_sent"], job["projections_used"], job["projections_refused"]) == (9, 7, 1)
        assert not job["complete"]
        assert json.loads(job["config"]) == {"window": 7}
        assert json.loads(job["refused_reasons"]) == {"projection": {"checksum": 1}}
        assert json.loads(job["missing"]) == ["9 sent, 8 received", "1 projection refused (checksum)"]
        assert job["quality_ssim"] == 0.9
        assert data.chunks == (1, 33, 33)


def test_nexus_and_dxchange_viewers_find_the_volume(tmp_path):
    with h5py.File(volume_writer(tmp_path, pixel_size_um=2.0).final(random_image(5, 33, 5), state()), "r") as file:
        entry = file[file.attrs["default"]]
        plot = entry[entry.attrs["default"]]
        assert plot.attrs["NX_class"] == "NXdata"
        assert plot[plot.attrs["signal"]] == file["data"] == file["exchange/data"]
        for axis, length in zip(plot.attrs["axes"], file["data"].shape, strict=True):
            assert plot[axis].shape == (length,)
        assert plot["x"].attrs["units"] == "um"
        assert plot["x"][0] == -plot["x"][-1] == -32.0
        assert plot["y"][0] == 32.0  # row 0 is at the top


@pytest.mark.parametrize("how", ["auto", "direct", "hdf5"])
def test_values_are_in_the_unit_that_the_file_says(tmp_path, how):
    image = random_image(5, 33, 8)
    per_pixel = image.transpose(2, 0, 1)[:5]
    path = volume_writer(tmp_path, pixel_size_um=2.5, how=how).final(image, state())
    np.testing.assert_allclose(storage.read_volume(path), 4000 * per_pixel, rtol=1e-6)
    with storage.Volume(path) as volume:
        np.testing.assert_allclose(volume.plane(0, 2) * volume.per_pixel, per_pixel[2], rtol=1e-6)


def test_an_unknown_pixel_size_gives_no_scale(tmp_path):
    with h5py.File(volume_writer(tmp_path).final(random_image(5, 33, 5), state(angles_rad=None)), "r") as file:
        assert file["data"].attrs["units"] == "1/pixel"
        assert "scale_to_per_pixel" not in file["data"].attrs
        assert "angle_min_deg" not in file["data"].attrs


@pytest.mark.parametrize(("slices", "n"), [(1, 1), (3, 7), (16, 640), (65, 640), (1024, 2048), (2, 20000)])
def test_blocks_cover_the_image_once_in_bounded_scratch(slices, n):
    bands = layout.blocks(slices, n)
    assert [row for band in bands for row in range(band.start, band.stop)] == list(range(n))
    largest = max(band.stop - band.start for band in bands)
    assert layout.scratch_bytes(slices, n) == slices * largest * n * 4
    row = slices * n * 4
    assert layout.scratch_bytes(slices, n) <= max(layout.SCRATCH_BYTES, slices * n * n * 4 // 32, row)
    assert math.prod(layout.chunk_shape(n)) * 4 <= layout.CHUNK_BYTES + 4 * n


@pytest.mark.parametrize("how", ["auto", "direct", "hdf5"])
def test_several_blocks_and_banded_chunks(tmp_path, monkeypatch, how):
    monkeypatch.setattr(layout, "SCRATCH_BYTES", 5 * 33 * 4 * 10)  # ten rows a block
    monkeypatch.setattr(layout, "CHUNK_BYTES", 33 * 4 * 12)
    image = random_image(5, 33, 8)
    assert len(layout.blocks(5, 33)) == 4
    path = volume_writer(tmp_path, how=how).final(image, state())
    assert np.array_equal(storage.read_volume(path), image.transpose(2, 0, 1)[:5])
    with h5py.File(path, "r") as file:
        assert file["data"].chunks == (1, 11, 33)


def test_a_full_disk_is_an_error_and_earlier_files_stay(tmp_path, small_disk):
    writer = volume_writer(small_disk, rows=20, n=150)
    image = random_image(20, 150, 32)
    first = writer.snapshot(0, image, state())
    with pytest.raises(StorageError, match=r"000001-recon\.h5: cannot be written: No space left"):
        writer.snapshot(1, image, state())
    assert [file.name for file in small_disk.iterdir()] == [first.name]
    assert np.array_equal(storage.read_volume(first), image.transpose(2, 0, 1)[:20])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "ministream-test", point], check=False)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    yield point
    subprocess.run(["umount", point], check=True)


def test_reserving_counts_free_space_where_it_cannot_claim_it(tmp_path, small_disk, monkeypatch):
    from ministream.storage import reserve as module

    monkeypatch.setattr(module, "_fallocate", lambda descriptor, size: module.errno.EOPNOTSUPP)
    reserve(small_disk / "f", 1 << 20)
    with pytest.raises(OSError, match=r"No space left on device .* MiB missing"):
        reserve(small_disk / "f", 1 << 30)


def test_a_file_size_limit_names_the_cause(tmp_path):
    writer = volume_writer(tmp_path, rows=20, n=120)
    with file_size_limit() as limit, pytest.raises(StorageError, match="File too large"):
        limit(1 << 16)
        writer.final(random_image(20, 120, 20), state())
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def file_size_limit():
    """Lets a test make writes beyond an offset fail; the former limit comes back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Failing(Alone):
    """A file system that fails once the file has been laid out and its space reserved."""

    def __init__(self, limit):
        self.limit = limit
        self.agreed = 0

    def agree(self, error):
        super().agree(error)
        self.agreed += 1
        if self.agreed == 4:  # the directory, what is seen there and removed again, the lay-out
            self.limit(1 << 16)


@pytest.mark.parametrize("how", ["auto", "direct", "hdf5"])
def test_a_failure_in_the_middle_is_reported(tmp_path, how):
    with file_size_limit() as limit:
        writer = storage.VolumeWriter(
            Failing(limit), tmp_path, scan=scan(20, 700), n=700, slab=Slab(0, 20), axis_col=60, config={}, how=how
        )
        with pytest.raises(StorageError, match=r"recon\.h5: cannot be written"):
            writer.final(random_image(20, 700, 20), state())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file/results: cannot be written: Not a directory"):
        volume_writer(tmp_path / "file" / "results")


def test_slabs_that_do_not_tile_are_refused(tmp_path):
    with pytest.raises(MachineError, match="do not tile 5 slices"):
        storage.VolumeWriter(Alone(), tmp_path, scan=scan(5, 9), n=9, slab=Slab(0, 4), axis_col=4, config={})


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.one_rank import random_image, state, volume_writer
from ministream.storage import direct
writer = volume_writer(Path(sys.argv[1]))
image = random_image(5, 33, 5)
writer.snapshot(0, image, state())
writer.finish()
store = direct.Direct._store
def store_then_die(self, *block):
    store(self, *block)
    os.kill(os.getpid(), signal.SIGKILL)
direct.Direct._store = store_then_die
writer.snapshot(1, image, state())
writer.finish()
"""


def test_killed_while_writing_leaves_the_earlier_snapshot(tmp_path):
    job = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=PROJECT, check=False, timeout=60)
    assert job.returncode == -signal.SIGKILL
    assert storage.snapshots(tmp_path) == [tmp_path / "000000-recon.h5"]
    assert np.array_equal(storage.read_volume(tmp_path / "000000-recon.h5"), random_image(5, 33, 5).transpose(2, 0, 1))
    # and the next job, in the same folder, is not disturbed by what was left
    writer = volume_writer(tmp_path)
    writer.snapshot(1, random_image(5, 33, 5), state())
    writer.finish()
    assert len(list(tmp_path.iterdir())) == 2


MEASURED = """
import sys
from pathlib import Path
from pathlib import Path
from tests.unit.one_rank import random_image, state, volume_writer
from ministream.storage import scratch_bytes
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
image = random_image(80, 640, 80)
before = peak()
volume_writer(Path(sys.argv[1]), rows=80, n=640).final(image, state())
print(image.nbytes, scratch_bytes(80, 640), peak() - before)
"""


def test_writing_takes_the_memory_that_was_predicted(tmp_path):
    command = [sys.executable, "-c", MEASURED, tmp_path]
    job = subprocess.run(command, cwd=PROJECT, check=True, timeout=60, capture_output=True, text=True)
    image, predicted, grown = map(int, job.stdout.split())
    assert predicted < image / 3
    assert 0.8 * predicted <= grown <= 1.2 * predicted + (4 << 20)


def test_planes_are_read_without_the_volume(tmp_path):
    image = random_image(5, 33, 5)
    with storage.Volume(volume_writer(tmp_path).final(image, state())) as volume:
        assert volume.shape == (5, 33, 33)
        assert np.array_equal(volume.plane(0, 4), image[:, :, 4])
        assert np.array_equal(volume.plane(1, 8), image[8].T)
        assert np.array_equal(volume.plane(2, 9), image[:, 9].T)
        assert np.array_equal(volume.slab(Slab(2, 2)), image.transpose(2, 0, 1)[2:4])
        assert volume.attributes["units"] == "1/pixel"
        with pytest.raises(InputError, match="has 5 slices, expected at least 7"):
            volume.slab(Slab(3, 4))


def _truncated(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.ones((4, 50, 50), np.float32)
    path.write_bytes(path.read_bytes()[:20000])


def _other_dataset(path):
    with h5py.File(path, "w") as file:
        file["tomopy"] = np.ones((1, 2, 2), np.float32)


def _flat(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.ones((2, 2), np.float32)


def _words(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.full((2, 2, 2), b"x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not hdf5"), "cannot be read as HDF5"),
        (_truncated, "cannot be read as HDF5, it is truncated"),
        (_other_dataset, r"no dataset /data; its three-dimensional datasets: /tomopy"),
        (_flat, r"/data is float32 \[2, 2\], not a volume"),
        (_words, "not a volume"),
    ],
)
def test_bad_volumes_are_named(tmp_path, make, message):
    path = tmp_path / "v.h5"
    make(path)
    with pytest.raises(InputError, match=f"v.h5: .*{message}|v.h5: {message}"):
        storage.read_volume(path)


def test_replacing_a_file_is_all_or_nothing(tmp_path):
    path = tmp_path / "summary.json"
    with atomic.replacing(path) as part:
        part.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as part:
        part.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(StorageError, match="absent/x: cannot be written: No such file"),
        atomic.replacing(tmp_path / "absent" / "x") as part,
    ):
        part.write_text("new")
