"""The folder of the results: writable, with room, locks and a speed. The ranks write to it in a check of their own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ministream.app.doctor.finding import Finding, Subject, bad, doubtful, good

_MIB = 64
_MOUNTS = Path("/proc/self/mountinfo")


def examine(subject: Subject) -> Iterator[Finding]:
    """File system and free space, locks, speed."""
    folder = existing(subject.folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
            yield good("output folder", f"{folder}: {file_system(folder)}, {_free_gib(folder):.1f} GiB free")
            yield _locks(Path(name))
            yield _speed(Path(name))
    except OSError as error:
        remedy = "choose a folder that you can write to, with room, as --out"
        yield bad("output folder", f"{folder}: {error.strerror}", remedy)


def existing(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, such as `ext4` or `lustre`."""
    path, best, kind = folder.resolve(), "", "unknown"
    for line in _MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def _free_gib(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 2**30


def _locks(folder: Path) -> Finding:
    try:
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        remedy = "readers of a file that is being written are not warned. For HDF5: export HDF5_USE_FILE_LOCKING=FALSE"
        return doubtful("file locks", str(error.strerror), remedy)
    return good("file locks", "work")


def _speed(folder: Path) -> Finding:
    block, began = os.urandom(1 << 20), time.perf_counter()
    with (folder / "speed").open("wb", buffering=0) as file:
        for _ in range(_MIB):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    return good("writing speed", f"{_MIB * 2**20 / seconds / 1e6:.0f} MB/s (one process, {_MIB} MiB, with fsync)")
