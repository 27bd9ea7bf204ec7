"""Checkpoints of one process: whole or absent, two kept, damage found, another number of ranks reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ministream import partition, storage
from ministream.errors import InputError, StorageError
from ministream.state import Shared, Slabwise
from ministream.storage.checkpoint import FORMAT, MANIFEST
from tests.unit.one_rank import Alone

ROWS, N = 7, 12
rng = np.random.default_rng(6)
IMAGE = rng.random((N, N, ROWS)).astype(np.float32)
SUMS = rng.random((N, 3))


def state(number: int = 0, rows: slice = slice(0, ROWS), share: slice = slice(0, N)) -> dict:
    padded = np.zeros((N, N, 16), np.float32)
    padded[:, :, : rows.stop - rows.start] = IMAGE[:, :, rows] + number
    return {
        "image": Slabwise(array=padded[:, :, : rows.stop - rows.start], axis=2),
        "sums": Shared(array=SUMS[share], part=share, total=N),
        "angles": np.arange(4.0),
        "nothing": np.zeros(0),
        "number": number,
        "name": None,
    }


def saved(folder: Path, *numbers: int) -> None:
    writer = storage.CheckpointWriter(Alone(), folder, 0)
    for number in numbers:
        writer.begin(state(number))
        assert writer.finish()
    writer.close()


def newest(folder: Path) -> storage.Checkpoint:
    return storage.open_newest(Alone(), folder)


def test_what_was_saved_is_read_back(tmp_path):
    saved(tmp_path, 3)
    found = newest(tmp_path).read(slice(0, ROWS), slice(0, N))
    assert np.array_equal(found["image"], IMAGE + np.float32(3))
    assert np.array_equal(found["sums"], SUMS)
    assert np.array_equal(found["angles"], np.arange(4.0))
    assert found["nothing"].size == 0
    assert (found["number"], found["name"]) == (3, None)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_each_rank_reads_its_own(tmp_path, ranks):
    saved(tmp_path, 0)
    for rank, slab in enumerate(partition.slabs(ROWS, ranks)):
        share = slice(N * rank // ranks, N * (rank + 1) // ranks)
        found = newest(tmp_path).read(slab.slice, share)
        assert np.array_equal(found["image"], IMAGE[:, :, slab.slice])
        assert np.array_equal(found["sums"], SUMS[share])


def test_two_are_kept_and_the_arrays_may_change_at_once(tmp_path):
    writer = storage.CheckpointWriter(Alone(), tmp_path, 0)
    for number in range(4):
        offered = state(number)
        writer.begin(offered)
        offered["image"].array[:] = -1
        writer.finish()
    assert [path.name for path in storage.checkpoints(tmp_path)] == ["checkpoint-000004", "checkpoint-000003"]
    assert np.array_equal(newest(tmp_path).read(slice(0, ROWS), slice(0, N))["image"], IMAGE + np.float32(3))
    writer.discard()
    assert not tmp_path.exists()
    writer.close()


def damage_array(path: Path) -> None:
    with (path / "rank-0000.bin").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))


def cut_array(path: Path) -> None:
    os.truncate(path / "rank-0000.bin", 200)


def damage_manifest(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('\\"number\\": 2', '\\"number\\": 1'))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage_array, "rank-0000.bin: checksum of image does not match"),
        (cut_array, "rank-0000.bin: checksum of image does not match"),
        (damage_manifest, "manifest.json: checksum does not match"),
        (lambda path: (path / MANIFEST).write_text("{"), "manifest.json: is damaged"),
        (lambda path: (path / MANIFEST).unlink(), "manifest.json: cannot be read: No such file"),
        (lambda path: (path / "rank-0000.bin").unlink(), "rank-0000.bin: cannot be read: No such file"),
    ],
)
def test_of_a_damaged_one_the_older_is_taken(tmp_path, caplog, harm, said):
    saved(tmp_path, 1, 2)
    first, second = reversed(storage.checkpoints(tmp_path))
    harm(second)
    assert newest(tmp_path).values["number"] == 1
    assert "checkpoint-000002 is damaged and not used" in caplog.text
    assert said in caplog.text
    harm(first)
    if harm is damage_manifest:
        damage_array(first)
    with pytest.raises(InputError, match=r"no checkpoint to resume from \(all 2 are damaged: .*without --resume"):
        newest(tmp_path)


def test_a_folder_without_one_is_said(tmp_path):
    with pytest.raises(InputError, match="none found"):
        newest(tmp_path / "absent")


def test_one_of_another_release_is_said(tmp_path):
    saved(tmp_path, 1)
    path = storage.checkpoints(tmp_path)[0] / MANIFEST
    import xxhash

    body = json.loads(path.read_text())["body"].replace(f'"format": {FORMAT}', '"format": 99')
    path.write_text(json.dumps({"digest": xxhash.xxh3_64_hexdigest(body.encode()), "body": body}))
    with pytest.raises(InputError, match="has format 99, this release reads "):
        newest(tmp_path)


def test_one_that_cannot_be_written_leaves_the_earlier_ones(tmp_path):
    saved(tmp_path, 1)
    writer = storage.CheckpointWriter(Alone(), tmp_path, 0)
    blocked = tmp_path / "checkpoint-000002"
    (blocked / "inside").mkdir(parents=True)
    (tmp_path / ".checkpoint.part").touch()
    with pytest.raises(StorageError, match=r"\.checkpoint\.part: cannot be written"):
        writer.begin(state(2))
        writer.finish()
    writer.close()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import saved, state
from ministream.storage import CheckpointWriter, checkpoint_writer
from tests.unit.one_rank import Alone
folder = Path(sys.argv[1])
saved(folder, 1)
sync = os.fsync
def die(descriptor):
    sync(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
writer = CheckpointWriter(Alone(), folder, 0)
os.fsync = die
writer.begin(state(2))
writer.finish()
"""


def test_killed_while_writing_leaves_the_earlier_one(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{root}"}
    command = [sys.executable, "-c", KILLED, tmp_path, Path(__file__).parent]
    assert subprocess.run(command, check=False, timeout=60, env=environment).returncode == -signal.SIGKILL
    assert newest(tmp_path).values["number"] == 1
    saved(tmp_path, 3)  # and the next one is not disturbed by what was left
    assert newest(tmp_path).values["number"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "checkpoint-000002"]
