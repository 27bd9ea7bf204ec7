"""A scan's id follows from its source, so that a producer that is started again serves the same scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash


def scan_id(options: Any, *, order: str, repeat: int, file: Path | None = None) -> str:
    """32 hexadecimal digits that change with what is played: the options, the order, and the file's path, size and time
    of modification.
    """
    facts = [type(options).__module__, options.model_dump_json(), order, repeat]
    if file is not None:
        status = file.stat()
        facts += [str(file.resolve()), status.st_size, status.st_mtime_ns]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())
