"""Disk space claimed before anybody writes, so that a full disk is an error and not a hole in the data."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def reserve(path: Path) -> None:
    """Claim the blocks of every byte of the existing file `path`.

    Raises OSError with the cause: disk full, quota, file too large. Where the file system cannot reserve
    (fallocate(2) not supported) the free space is compared instead. `os.posix_fallocate` is not used
    because it then writes one byte into every 4 KiB of the file.
    """
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    descriptor = os.open(path, os.O_RDWR)
    try:
        failed = libc.fallocate(descriptor, 0, 0, size) != 0
        code = ctypes.get_errno()
    finally:
        os.close(descriptor)
    if not failed:
        return
    if code not in _NOT_SUPPORTED:
        raise OSError(code, os.strerror(code), str(path))
    space = os.statvfs(path)
    missing = size - path.stat().st_blocks * 512 - space.f_bavail * space.f_frsize
    if missing > 0:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({missing / 2**20:.0f} MiB missing)", str(path))
