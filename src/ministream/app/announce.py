"""A job's addresses, for its launcher, in a file that is written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ministream import atomic


def announce(path: Path | None, **addresses: str | None) -> None:
    """Write the job's addresses and pid as JSON, readable by this user alone; replaces an earlier file.

    Raises StorageError naming the file.
    """
    if path is None:
        return
    with atomic.replacing(path) as part:
        # an existing file, perhaps a link, is never written to
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        part.write_text(json.dumps(addresses | {"pid": os.getpid()}))
