"""The archive is a DXchange file at every moment, and gives back what it was given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest

from ministream import config
from ministream.app.producer.spool import Spool
from ministream.errors import ConfigError, IncompleteError, InputError, StorageError
from ministream.model import FrameKind, Notice
from ministream.source import Source, open_source
from ministream.storage import archive as module
from ministream.storage.archive import Archive
from tests.native_stream import make_frame, make_frames, make_scan, same

SCAN = make_scan(notices=(Notice(code="angles-duplicate", text="2 of 7", numbers={"frames": 2.0}, frames=(3, 4)),))


def filled(path: Path, scan=SCAN, count: int | None = None) -> Path:
    with Archive(path, scan) as archive:
        for frame in list(make_frames(scan))[:count]:
            archive.append(frame)
    return path


def recording(path: Path) -> Source:
    section = config.SourceSection(kind="replay", file=str(path), speed="unlimited")
    return open_source(section, order="sequential", repeat=1)


@pytest.mark.parametrize("projections", [7, 0], ids=["a known number", "an unknown number"])
def test_what_was_appended_comes_back(tmp_path, monkeypatch, projections):
    monkeypatch.setattr(module, "BLOCK_FRAMES", 3)
    scan = replace(SCAN, projections=projections)
    sent = list(make_frames(SCAN))
    with Archive(tmp_path / "raw.h5", scan) as archive:
        for frame in sent:
            archive.append(frame)
    with recording(tmp_path / "raw.h5") as played:
        assert played.describe() == scan
        assert all(same(one, other) for one, other in zip(islice(played.frames(), 12), sent, strict=True))


def test_it_is_a_dxchange_file(tmp_path):
    path = filled(tmp_path / "raw.h5")
    with h5py.File(path) as file:
        assert file["exchange/data"].shape == (7, 3, 5)
        assert file["exchange/data_white"].shape == (3, 3, 5)
        assert np.allclose(file["exchange/theta"], np.rad2deg(0.01 * np.arange(7)))
    section = config.SourceSection(kind="dxchange", file=str(path))
    with open_source(section, order="sequential", repeat=1) as played:
        frames = list(played.frames())
    assert [(frame.kind, frame.pixels.tobytes()) for frame in frames] == [
        (frame.kind, frame.pixels.tobytes()) for frame in make_frames(SCAN)
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from ministream.storage.archive import Archive
from tests.native_stream import make_frames, make_scan
archive = Archive(Path(sys.argv[1]), make_scan(projections=0))
for frame in list(make_frames(make_scan()))[:9]:
    archive.append(frame)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_it_holds_what_was_appended(tmp_path):
    path = tmp_path / "raw.h5"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    sent = list(make_frames(make_scan()))
    with h5py.File(path) as file:
        assert np.array_equal(file["exchange/data"][:4], [frame.pixels for frame in sent[5:9]])
    with recording(path) as played:
        frames = played.frames()
        assert all(same(next(frames), other) for other in sent[:9])
        with pytest.raises(IncompleteError, match="interrupted after 4 projections"):
            next(frames)


def test_a_frame_that_was_half_written_is_not_held_and_a_damaged_one_is_noticed(tmp_path):
    path = filled(tmp_path / "raw.h5")
    with h5py.File(path, "r+") as file:
        file["exchange/data"][6, 0, 0] += 1
    with recording(path) as played:
        assert len(list(played.frames())) == 11
        assert played.dropped == 1
    with h5py.File(path, "r+") as file:
        file["exchange/data"][2, 0, 0] += 1
    with recording(path) as played, pytest.raises(InputError, match="projection 2 does not match its checksum"):
        list(played.frames())


def test_a_file_that_is_there_is_never_overwritten(tmp_path):
    path = filled(tmp_path / "raw.h5")
    with pytest.raises(StorageError, match=r"raw\.h5: exists: choose another name"):
        Archive(path, SCAN)


@pytest.mark.parametrize("hold_bytes", [0, 100, 10**6])
def test_a_spool_takes_everything_at_once_and_gives_it_back_in_order(tmp_path, hold_bytes):
    sent = list(make_frames(SCAN))
    with (
        Archive(tmp_path / "raw.h5", SCAN) as archive,
        Spool(iter(sent), archive, hold_bytes=hold_bytes, stop=lambda: None) as spool,
    ):
        frames = iter(spool)
        first = next(frames)
        spool._thread.join(10)  # the acquisition ends although nobody takes the rest
        assert archive.read(11).kind is FrameKind.PROJECTION
        assert all(same(one, other) for one, other in zip([first, *frames], sent, strict=True))


def test_a_failure_of_the_source_comes_out_after_what_it_gave(tmp_path):
    def failing():
        yield make_frame(SCAN, FrameKind.DARK, 0)
        raise ConfigError("the shutter is stuck")

    with (
        Archive(tmp_path / "raw.h5", SCAN) as archive,
        Spool(failing(), archive, hold_bytes=10**6, stop=lambda: None) as spool,
    ):
        frames = iter(spool)
        assert next(frames).kind is FrameKind.DARK
        with pytest.raises(ConfigError, match="stuck"):
            next(frames)


def test_small_frames_share_chunks(tmp_path):
    # HDF5 finds a chunk in a time that grows with their number: one per frame takes minutes for a long scan
    path, long = tmp_path / "a.h5", replace(SCAN, projections=50_000)
    with Archive(path, long), h5py.File(path) as file:
        projections = file["exchange/data"]
        assert projections.chunks[0] * long.frame_bytes <= 16 * 2**20
        assert len(projections) / projections.chunks[0] < 100
