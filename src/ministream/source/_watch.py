"""Files that must not change while they are read: HDF5 and TIFF readers return zeros for truncated data."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Literal

from ministream.errors import InputError


def kind_of(path: Path) -> Literal["file", "folder", "absent"]:
    """What lies at a path. Raises InputError for what the user may not read, and for a device or pipe."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except OSError as error:
        raise _unreadable(path, error.errno or errno.EIO) from error
    if not os.access(path, os.R_OK, effective_ids=True):
        raise _unreadable(path, errno.EACCES)
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a device or a pipe, expected a file. Name a file with --set source.file=FILE")
    return "file"


def _unreadable(path: Path, error: int) -> InputError:
    return InputError(
        f"{path}: cannot be read: {os.strerror(error)}. Check the name, and the permissions of file and folders, "
        "expected read access for the user that runs the producer."
    )


class Unchanged:
    """A file's state when it was opened; `check` raises InputError once it has changed.

    With `growing` the file may become longer, but never shorter, and it stays the same file.
    """

    def __init__(self, path: Path, *, growing: bool = False) -> None:
        self._path, self._growing = path, growing
        self._before = self._stat()

    def check(self) -> None:
        """Compare the file's size, time of change and identity with those at the start, after every read."""
        now, before = self._stat(), self._before
        if now.st_size < before.st_size:
            raise InputError(
                f"{self._path}: the file shrank from {before.st_size} to {now.st_size} bytes while it was read, so the "
                "images read last may be zeros. Copy the file again, then start again."
            )
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise InputError(
                f"{self._path}: another file replaced it while it was read. Start again when the file is complete."
            )
        if self._growing:
            self._before = now
        elif (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError(
                f"{self._path}: the file changed while it was read. Start again when it is complete; a DXchange file "
                "that is still being written can be followed with --set source.follow=true"
            )

    def _stat(self) -> os.stat_result:
        try:
            return self._path.stat()
        except OSError as error:
            raise InputError(
                f"{self._path}: the file was removed while it was read: {error.strerror}. Start again."
            ) from error
