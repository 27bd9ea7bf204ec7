"""What a job tells its launcher, in a file that is written atomically: its addresses, then how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ministream import atomic


def announce(path: Path | None, **told: str | int | None) -> None:
    """Write what is told, such as the job's addresses, and its pid as JSON for this user alone; replaces the file.

    Raises StorageError naming the file.
    """
    if path is None:
        return
    with atomic.replacing(path) as part:
        # an existing file, perhaps a link, is never written to
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        part.write_text(json.dumps(told | {"pid": os.getpid()}))
