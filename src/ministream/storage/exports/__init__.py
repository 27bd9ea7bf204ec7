"""Volumes in the formats of other programs: one module per format, named after the suffix of its files.

A format has `write(export, part)`, which writes the file or folder `part`, and `FOLDER`, true where it is a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ministream import registry
from ministream.errors import ConfigError
from ministream.storage.provenance import Provenance
from ministream.storage.reader import Volume

_PACKAGE = __name__
_SPELLINGS = {"tif": "tiff"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What is to be written.

    `moments` are the volume's snapshots, oldest first, and the volume itself. Pictures show the plane at `index` along
    `axis` (0: slice, 1: row, 2: col), black at `limits[0]` and white at `limits[1]`; films show `fps` moments per
    second. `workers` are the processes that may write.
    """

    volume: Volume
    moments: Sequence[Volume]
    provenance: Provenance
    axis: int
    index: int
    limits: tuple[float, float]
    fps: float
    workers: int


def format_of(path: Path) -> str:
    """The format that the suffix of `path` names. Raises ConfigError for one that is not known."""
    suffix = path.suffix.lower().removeprefix(".")
    name = _SPELLINGS.get(suffix, suffix)
    if name not in registry.names(_PACKAGE):
        known = ", ".join(f".{each}" for each in registry.names(_PACKAGE))
        raise ConfigError(f"{path}: no format has the suffix {path.suffix!r}; choose a name that ends with {known}")
    return name


def open_format(name: str) -> ModuleType:
    """The module of a format. Raises ConfigError without the extra `convert`."""
    try:
        return registry.load(_PACKAGE, name)
    except ConfigError as error:
        raise ConfigError(f"{error}: pip install 'ministream[convert]'") from error


__all__ = ["Export", "format_of", "open_format"]
