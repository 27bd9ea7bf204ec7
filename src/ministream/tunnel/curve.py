"""Keys for end-to-end encryption of the stream, in a directory made by `ministream certs curve`.

    producer.secret   receiver.public    what the producer needs
    receiver.secret   producer.public    what a receiver needs

A key is 64 hexadecimal digits. `receiver.public` lists the admitted receivers, one key per line; `#` starts a comment.
Each side needs no more than its two files, and the other's secret never leaves the machine on which it was made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ministream.errors import ConfigError
from ministream.model import CurveKeys
from ministream.tunnel import files

StreamEnd = Literal["producer", "receiver"]
SIDES: tuple[StreamEnd, ...] = ("producer", "receiver")

_KEY = re.compile(r"[0-9a-fA-F]{64}")
_MAKER = "ministream certs curve"


def create(directory: Path, sides: Sequence[StreamEnd] = SIDES) -> None:
    """Make the key pairs of these sides. Raises ConfigError if one exists: the other side relies on it."""
    for side in sides:
        for path in (_secret(directory, side), _public(directory, side)):
            if path.exists():
                raise ConfigError(f"{path} already exists: choose another directory, or remove it to replace the key")
    files.make_private(directory)
    for side in sides:
        key = X25519PrivateKey.generate()
        files.write(_secret(directory, side), _line(key.private_bytes_raw()), 0o600)
        files.write(_public(directory, side), _line(key.public_key().public_bytes_raw()), 0o644)


def load(directory: Path | None, side: StreamEnd) -> CurveKeys | None:
    """What one side needs of a directory; None without one.

    Raises ConfigError: missing, no keys, a secret that others can read, a list that others can change, more than
    one producer.
    """
    if directory is None:
        return None
    own = _secret(directory, side)
    others = _public(directory, "receiver" if side == "producer" else "producer")
    secret = _keys(files.read_key(own, _MAKER), own)
    if len(secret) != 1:
        raise ConfigError(f"{own}: expected one key, found {len(secret)}: make it with `{_MAKER}`")
    peers = _keys(files.read(others, _MAKER), others)
    if not peers or (side == "receiver" and len(peers) > 1):
        wanted = "the producer's key, and no other" if side == "receiver" else "every admitted receiver's key"
        raise ConfigError(f"{others}: {len(peers)} keys; {wanted}, must be in it")
    return CurveKeys(secret=secret[0], peers=frozenset(peers))


def _secret(directory: Path, side: StreamEnd) -> Path:
    return directory / f"{side}.secret"


def _public(directory: Path, side: StreamEnd) -> Path:
    return directory / f"{side}.public"


def _line(key: bytes) -> bytes:
    return key.hex().encode() + b"\n"


def _keys(data: bytes, path: Path) -> list[bytes]:
    """The keys in a file. Error messages never repeat the content: it may be a secret."""
    lines = [line.partition("#")[0].strip() for line in data.decode("utf-8", "replace").splitlines()]
    for number, text in enumerate(lines, start=1):
        if text and not _KEY.fullmatch(text):
            raise ConfigError(f"{path}:{number}: not a key, which is 64 hexadecimal digits: make it with `{_MAKER}`")
    return [bytes.fromhex(text) for text in lines if text]
