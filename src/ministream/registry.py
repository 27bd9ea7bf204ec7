"""Discovery of plug-ins: each module of a package is one plug-in."""

from __future__ import annotations

import importlib.util
import pkgutil
from types import ModuleType

from ministream.errors import ConfigError


def names(package: str) -> tuple[str, ...]:
    """The plug-ins of a package such as `ministream.source`: its modules whose names have no leading underscore.

    Neither the package nor a plug-in is imported, so a plug-in whose extra is not installed is still listed.
    """
    spec = importlib.util.find_spec(package)
    path = spec.submodule_search_locations if spec is not None else None
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `package`.

    Raises ConfigError for an unknown name (listing the known ones) and for a missing optional dependency.
    """
    known = names(package)
    kind = package.rpartition(".")[2]
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ministream"):
            raise
        raise ConfigError(f"{kind} {name!r} needs the Python package {error.name!r}: install it") from error
