"""Files that must not change while they are read: HDF5 and TIFF readers return zeros for truncated data."""

from __future__ import annotations

import os
from pathlib import Path

from ministream.errors import InputError


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
