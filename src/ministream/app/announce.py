"""Tell a launcher where a job listens, in a file that appears whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ministream.errors import StorageError


def announce(path: Path | None, **addresses: str | None) -> None:
    """Write the job's addresses and pid as JSON, readable by this user alone, replacing what was there.

    Raises StorageError naming the file.
    """
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(addresses | {"pid": os.getpid()}, file)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot announce this job's addresses: {error.strerror}") from error
