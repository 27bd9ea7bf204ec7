"""Scans that are still being written, by real writers: in SWMR mode, or appending; slow ones and killed ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ministream import config
from ministream.errors import ConfigError, IncompleteError, InputError
from ministream.model import Frame, FrameKind
from ministream.source import Source, open_source

DATA = np.random.default_rng(0).integers(1000, 4000, (12, 4, 6)).astype(np.uint16)

WRITER = """
import sys
import h5py
import numpy as np
path, mode, length = sys.argv[1:4]
data = np.load(path + ".npy")
chunk = int(sys.argv[4])

def create(file):
    shape = (len(data) if mode == "preallocated" else 0, *data.shape[1:])
    size = data.shape[1:]
    made = file.create_dataset("exchange/data", shape, "u2", maxshape=(None, *size), chunks=(chunk, *size))
    for name in ("data_white", "data_dark"):
        file["exchange/" + name] = np.full((2, *data.shape[1:]), 5000 if name == "data_white" else 100, "u2")
    if int(length):
        file["exchange/theta"] = np.arange(int(length)) * 15.0
    return made

def append(made, k):
    if mode != "preallocated":
        made.resize(k + 1, axis=0)
    made[k] = data[k]
    made.flush()

done = 0
if mode == "appended":
    with h5py.File(path, "w") as file:
        create(file)
else:
    file = h5py.File(path, "w", libver="latest")
    made = create(file)
    file.swmr_mode = True
print("ready", flush=True)
for line in sys.stdin:
    for k in range(done, done + int(line)):
        if mode == "appended":
            with h5py.File(path, "a") as file:
                append(file["exchange/data"], k)
        else:
            append(made, k)
        done = k + 1
    print(done, flush=True)
if mode != "appended":
    file.close()
"""


class Writer:
    """A process that writes as many images as it is told."""

    def __init__(self, path: Path, mode: str, *, angles: int, chunk: int = 1) -> None:
        np.save(f"{path}.npy", DATA)
        command = [sys.executable, "-c", WRITER, str(path), mode, str(angles), str(chunk)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")
        self._written = 0

    def write(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._written += count
        self._answer(str(self._written))

    def finish(self) -> None:
        """Close the file."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self, expected: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == expected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.h5"


@pytest.fixture
def writer(request: pytest.FixtureRequest, path: Path) -> Iterator[Writer]:
    mode, angles, chunk = request.param
    made = Writer(path, mode, angles=angles, chunk=chunk)
    yield made
    made.close()


def writers(*found: tuple[str, int, int]) -> Any:
    return pytest.mark.parametrize("writer", found, indirect=True, ids=["-".join(map(str, one)) for one in found])


def followed(path: Path, **options: Any) -> Source:
    options = {"follow": True, "stall_timeout_s": 20.0} | options
    return open_source(config.SourceSection(kind="dxchange", file=str(path), **options), order="sequential", repeat=1)


def projections(frames: Iterator[Frame], count: int) -> list[Frame]:
    """The next `count` projections."""
    found: list[Frame] = []
    while len(found) < count:
        frame = next(frames)
        found += [frame] if frame.kind is FrameKind.PROJECTION else []
    return found


def same(found: list[Frame], first: int = 0) -> bool:
    expected = np.arange(first, first + len(found))
    np.testing.assert_array_equal([frame.pixels for frame in found], DATA[expected])
    np.testing.assert_allclose(np.rad2deg([frame.angle_rad for frame in found]), 15.0 * expected)
    return [frame.index for frame in found] == expected.tolist()


@writers(("swmr", 12, 1), ("preallocated", 12, 1), ("swmr", 12, 4), ("appended", 12, 1))
def test_images_come_as_they_are_written(path: Path, writer: Writer) -> None:
    writer.write(5)
    with followed(path) as source:
        frames = source.frames()
        assert source.describe().flats == source.describe().darks == 2
        assert same(projections(frames, 4))
        writer.write(6)
        assert same(projections(frames, 4), 4)
        writer.write(1)
        writer.finish()
        assert same(list(frames), 8)


@writers(("swmr", 12, 1), ("appended", 12, 1))
def test_the_angles_say_how_many_come(path: Path, writer: Writer) -> None:
    writer.write(12)
    with followed(path, projections=[0, 12]) as source:
        assert source.describe().projections == 12
        assert same([frame for frame in source.frames() if frame.kind is FrameKind.PROJECTION])
    with followed(path, projections=[1, 9], every=2, exclude=[3]) as source:
        played = [frame for frame in source.frames() if frame.kind is FrameKind.PROJECTION]
        assert source.describe().projections == len(played) == 3
        assert [frame.position for frame in played] == [1, 5, 7]


@writers(("swmr", 0, 1))
def test_without_angles_the_scan_ends_when_the_file_is_closed(path: Path, writer: Writer) -> None:
    writer.write(7)
    with followed(path, angles={"step": 15.0}, stall_timeout_s=0.5) as source:
        assert source.describe().projections == 0
        frames = source.frames()
        assert same(projections(frames, 7))
        writer.finish()
        assert list(frames) == []


@writers(("swmr", 12, 1))
def test_a_writer_that_was_killed_is_told_from_one_that_is_done(path: Path, writer: Writer) -> None:
    writer.write(5)
    with followed(path, stall_timeout_s=0.5) as source:
        frames = source.frames()
        assert same(projections(frames, 5))
        writer.kill()
        with pytest.raises(IncompleteError, match=r"after 5 of 12, and the writer has not closed the file"):
            list(frames)


@writers(("swmr", 12, 1))
def test_nobody_is_told_to_run_h5clear(path: Path, writer: Writer) -> None:
    """The file is live, or its writer was killed: following it is the remedy in both cases."""
    writer.write(3)
    for killed in (False, True):
        with pytest.raises(InputError, match=r"its writer was killed.*--set source\.follow=true") as caught:
            followed(path, follow=False)
        assert "h5clear" not in str(caught.value)
        with followed(path, stall_timeout_s=0.3) as source:
            assert same(projections(source.frames(), 3))
        if not killed:
            writer.kill()


@writers(("appended", 12, 1))
def test_a_scan_that_is_not_continued_is_incomplete(path: Path, writer: Writer) -> None:
    writer.write(3)
    with (
        followed(path, stall_timeout_s=0.3) as source,
        pytest.raises(IncompleteError, match="after 3 of 12, and the file is closed"),
    ):
        list(source.frames())


def test_a_file_that_a_writer_has_locked_is_waited_for(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["exchange/data"] = DATA
        file["exchange/theta"] = np.arange(12) * 15.0
    options = {"flats": "none", "darks": "none"}
    with h5py.File(path, "a"):
        if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() == "FALSE":
            pytest.skip("HDF5 locks no files here")
        script = f"""
from ministream import config
from ministream.source import open_source
section = config.SourceSection(kind="dxchange", file={str(path)!r}, flats="none", darks="none")
open_source(section, order="sequential", repeat=1)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert "another process is writing it" in done.stderr
        assert "--set source.follow=true" in done.stderr
    with followed(path, projections=[0, 12], **options) as source:
        assert same(list(source.frames()))


@writers(("swmr", 12, 1))
def test_a_file_that_shrinks_is_an_error(path: Path, writer: Writer) -> None:
    writer.write(5)
    with followed(path) as source:
        frames = source.frames()
        assert same(projections(frames, 5))
        writer.kill()
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(InputError, match=r"the file shrank from \d+ to \d+ bytes while it was followed"):
            list(frames)


@writers(("swmr", 12, 1))
def test_waiting_can_be_stopped_from_another_thread(path: Path, writer: Writer) -> None:
    writer.write(2)
    with followed(path) as source:
        frames = source.frames()
        projections(frames, 2)
        left: list[Frame] = []
        thread = threading.Thread(target=lambda: left.extend(frames))
        thread.start()
        source.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert left == []


def test_a_file_that_does_not_come_is_named(path: Path) -> None:
    with pytest.raises(InputError, match=r"scan\.h5: no such file \(after 0\.2 s of waiting"):
        followed(path, stall_timeout_s=0.2)


@pytest.mark.parametrize(("order", "repeat"), [("golden-angle", 1), ("sequential", 2)])
def test_only_the_order_of_the_writer_is_possible(path: Path, order: str, repeat: int) -> None:
    section = config.SourceSection(kind="dxchange", file=str(path), follow=True)
    with pytest.raises(ConfigError, match="Omit order and repeat"):
        open_source(section, order=order, repeat=repeat)


def test_the_last_angle_needs_the_number_of_projections(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"angles has stop.*projections=\[0, N\]"):
        followed(path, angles={"stop": 180.0})
