"""Tell a launcher where a job listens, in a file that appears whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ministream import atomic


def announce(path: Path | None, **addresses: str | None) -> None:
    """Write the job's addresses and pid as JSON, readable by this user alone, replacing what was there.

    Raises StorageError naming the file.
    """
    if path is None:
        return
    with atomic.replacing(path) as part:
        # whatever lies there, a link perhaps, is not written to
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        part.write_text(json.dumps(addresses | {"pid": os.getpid()}))
