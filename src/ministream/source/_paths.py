"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from ministream.errors import InputError


def expanded(path: Path) -> Path:
    """The path with `~` replaced by the home folder. Raises InputError for a user without one."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: the home folder of this user is not known: write the whole path") from error
