"""Results written to a node's local disk, and copied to their final folder while the job runs."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Self

from ministream import atomic, log
from ministream.errors import MinistreamError, StorageError

_LOG = log.get(__name__)

POLL_S = 0.5


class StageOut:
    """Copies every finished file from `scratch` to `target`, atomically, in a separate thread.

    Unfinished files have names that start with a dot and are renamed when complete. A replaced file is copied again.
    `finish` copies the rest. It raises StorageError for a failed copy, and for an empty scratch folder: the ranks
    have then written on another machine.
    """

    def __init__(self, scratch: Path, target: Path) -> None:
        self._scratch, self._target = scratch, target
        self._copied: dict[Path, tuple[int, int]] = {}
        self._error: MinistreamError | None = None
        self._finish = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage-out", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish.set()
        self._thread.join()
        if self._error is None:
            if self._scratch.exists():
                shutil.rmtree(self._scratch)
        else:
            _LOG.error("%s; results not yet copied are in %s", self._error, self._scratch)

    def finish(self) -> None:
        """Copy the remaining files. Raises StorageError."""
        self._finish.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        if not self._copied:
            where = f"{self._scratch} on {os.uname().nodename}"
            raise StorageError(f"no results in {where}. Run the ranks on this node, or omit --scratch")

    def _run(self) -> None:
        try:
            while not self._finish.wait(POLL_S):
                self._copy_new()
            self._copy_new()
        except MinistreamError as error:
            self._error = error

    def _copy_new(self) -> None:
        for source in sorted(self._scratch.rglob("*")):
            if source.name.startswith(".") or not source.is_file():
                continue
            found = source.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if self._copied.get(source) != stamp:
                self._copy(source, self._target / source.relative_to(self._scratch))
                self._copied[source] = stamp

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.failed(target, error) from error
        with atomic.replacing(target) as part:
            shutil.copyfile(source, part)
        _LOG.debug("staged out %s", target)
