"""The key file of the live view: the address of a running job, and the keys that admit viewers to it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ministream import private
from ministream.app.announce import announce
from ministream.errors import ConfigError
from ministream.model import CurveKeys

NAME = ".live.json"
"""In the folder of the results. The leading dot keeps it there when results are staged out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveKey:
    """CURVE keys, each 32 bytes: `server`, of rank 0, is None in a copy for viewers; `viewer` admits to it.

    `operator` is the token for steering; None in a copy for those who may only watch.
    """

    server: bytes | None
    server_public: bytes
    viewer: bytes
    operator: bytes | None = field(default=None, repr=False)

    @classmethod
    def new(cls) -> Self:
        """A new key."""
        server = X25519PrivateKey.generate()
        return cls(
            server=server.private_bytes_raw(),
            server_public=server.public_key().public_bytes_raw(),
            viewer=X25519PrivateKey.generate().private_bytes_raw(),
            operator=secrets.token_bytes(32),
        )

    def for_server(self) -> CurveKeys:
        """The keys of rank 0."""
        if self.server is None:
            raise ConfigError(f"{NAME} has no server key: it is a copy for viewers. Remove it from the output folder.")
        public = X25519PrivateKey.from_private_bytes(self.viewer).public_key().public_bytes_raw()
        return CurveKeys(secret=self.server, peers=frozenset({public}))

    def for_viewer(self) -> CurveKeys:
        """The keys of a viewer."""
        return CurveKeys(secret=self.viewer, peers=frozenset({self.server_public}))

    def write(self, folder: Path, address: str) -> None:
        """Write the file, readable by this user alone. Raises StorageError."""
        server = None if self.server is None else self.server.hex()
        public, viewer = self.server_public.hex(), self.viewer.hex()
        operator = None if self.operator is None else self.operator.hex()
        announce(folder / NAME, address=address, server=server, server_public=public, viewer=viewer, operator=operator)


def read(path: Path) -> tuple[LiveKey, str]:
    """The keys in a file, and the address of the job. Raises ConfigError, also if others can read it."""
    try:
        values: Mapping[str, Any] = json.loads(private.read_file(path, secret=True))
        server, operator = values.get("server"), values.get("operator")
        key = LiveKey(
            server=bytes.fromhex(server) if server else None,
            server_public=_key(values["server_public"]),
            viewer=_key(values["viewer"]),
            operator=_key(operator) if operator else None,
        )
        return key, str(values["address"])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is not the key file of a live view. Copy {NAME} from the output folder of the running job."
        ) from error


def of_job(folder: Path) -> LiveKey:
    """The key of an earlier run of this job in `folder`, so that its viewers stay admitted, else a new one."""
    path = folder / NAME
    return read(path)[0] if path.exists() else LiveKey.new()


def _key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != 32:
        raise ValueError("a key has 32 bytes")
    return key
