"""Reserves disk space before writing, so that a full disk is an error and not a hole in the data."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ministream import atomic

_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def reserve(path: Path, size: int) -> None:
    """Reserve the blocks of the first `size` bytes of the file `path`, which is created if it does not exist.

    Raises OSError with the cause: disk full, quota, file too large. Where the file system cannot reserve
    (fallocate(2) not supported) the free space is compared instead. `os.posix_fallocate` is not used
    because it then writes one byte into every 4 KiB of the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        code = _fallocate(descriptor, size)
    finally:
        os.close(descriptor)
    if code in _NOT_SUPPORTED:
        _compare(path, size)
    elif code:
        raise OSError(code, os.strerror(code), str(path))


def reserve_beside(path: Path, size: int) -> None:
    """Check that there is room for `size` bytes where `path` is to be written, as `reserve` does; nothing is left."""
    part = atomic.part_of(path)
    try:
        reserve(part, size)
    finally:
        atomic.discard(part)


def _fallocate(descriptor: int, size: int) -> int:
    """The error number of fallocate(2), 0 for success."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return ctypes.get_errno() if libc.fallocate(descriptor, 0, 0, size) else 0


def _compare(path: Path, size: int) -> None:
    space = os.statvfs(path)
    missing = size - path.stat().st_blocks * 512 - space.f_bavail * space.f_frsize
    if missing > 0:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({missing / 2**20:.0f} MiB missing)", str(path))
