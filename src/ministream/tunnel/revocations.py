"""The list of revoked certificates: the file `revoked` of a credentials directory, which every party has."""

from __future__ import annotations

from pathlib import Path

from ministream.errors import ConfigError
from ministream.tunnel import files


class RevocationList:
    """The serial numbers on the list; the file is read again whenever it has changed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "revoked"
        self._stamp: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        """Whether it lists any certificate. Raises ConfigError as `in` does."""
        return bool(self._current())

    def __contains__(self, serial: int) -> bool:
        """Raises ConfigError for a file that cannot be parsed or is missing: no caller is admitted by accident."""
        return serial in self._current()

    def _current(self) -> frozenset[int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise _missing(self._path) from error
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._serials = read_revoked(self._path)
            self._stamp = stamp
        return self._serials


def read_revoked(path: Path) -> frozenset[int]:
    """The serial numbers in a revocation file. Raises ConfigError naming the line, or for a file that is missing."""
    if not path.exists():
        raise _missing(path)
    serials = set()
    for number, line in enumerate(files.read(path).decode("utf-8", "replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        try:
            if text:
                serials.add(int(text, 16))
        except ValueError:
            raise ConfigError(f"{path}:{number}: {text!r} is not a hexadecimal serial number") from None
    return frozenset(serials)


def _missing(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}, the list of revoked certificates, is missing: copy it from the authority's directory, or create an"
        f" empty one if no certificate was ever revoked (touch {path}). Until then every certificate is rejected"
    )
