"""File locks, and file systems that have none: NFS without its lock daemon, Lustre mounted without flock."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

from ministream import log

# What flock(2) raises where the file system has no locks.
_NONE = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

_LOG = log.get(__name__)


def are_missing(error: OSError) -> bool:
    """Whether the error says that the file system has no locks, not that somebody holds one."""
    return error.errno in _NONE


def for_reading(path: Path) -> bool | None:
    """h5py's `locking` for an existing file: False, with a warning, on a file system without locks; else None.

    HDF5 itself refuses such a file. Its mode BEST_EFFORT (1.10.8) goes on after ENOSYS alone, not after ENOLCK.
    Raises OSError for a file that cannot be opened.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if not are_missing(error):
                return None  # HDF5 reports who holds it
            _LOG.warning("%s: its file system has no locks: a writer that has the file open is not noticed", path)
            return False
    return None
