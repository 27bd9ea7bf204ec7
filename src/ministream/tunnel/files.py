"""Credential files: written atomically with the right mode, refused if others can read a key or change any file."""

from __future__ import annotations

from pathlib import Path

from ministream import atomic, private
from ministream.errors import ConfigError


def read(path: Path, maker: str = "ministream certs") -> bytes:
    """What the file holds; `maker` is the command that makes such a file. Raises ConfigError, also when anyone else
    can change it.
    """
    return _read(path, maker, secret=False)


def read_key(path: Path, maker: str = "ministream certs") -> bytes:
    """A secret. Raises ConfigError, also when anyone else can read or change it."""
    return _read(path, maker, secret=True)


def _read(path: Path, maker: str, *, secret: bool) -> bytes:
    try:
        return private.read_file(path, secret=secret)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; make credentials with `{maker}`") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def make_private(directory: Path) -> None:
    """Make a directory with mode 0700 unless it exists. Raises StorageError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.failed(directory, error) from error


def write(path: Path, data: bytes, mode: int) -> None:
    """Write atomically; the file is never readable by more users than `mode` allows. Raises StorageError."""
    with atomic.replacing(path) as part:
        # A part left behind by a crash might be open to others.
        part.unlink(missing_ok=True)
        part.touch(mode=0o600, exist_ok=False)
        part.write_bytes(data)
        part.chmod(mode)
