"""The one policy for numba: how kernels are compiled, and where their machine code is kept.

Kernels are compiled without Python objects, without the GIL (threads are Python's, see
`recon.kernels.threads`) and kept on disk. Nodes of a cluster may share a home directory but not a
processor, so the cache is keyed by what numba would compile for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba

from ministream.errors import ConfigError


def processor() -> tuple[str, str]:
    """Name and features ("+avx2,-avx512f,…") of the processor compiled for: this one, or NUMBA_CPU_NAME's."""
    features = numba.config.CPU_FEATURES
    return (
        numba.config.CPU_NAME or llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten() if features is None else features,
    )


def cache_directory() -> Path:
    """Where machine code is kept: NUMBA_CACHE_DIR, or a folder per kind of processor in the user's cache directory."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cpu, features = processor()
    key = hashlib.sha256(f"{features} {numba.__version__}".encode()).hexdigest()[:8]
    return base / "ministream" / f"{cpu}-{key}"


def _prepared() -> Path:
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: compiled kernels cannot be kept there: {error.strerror}; "
            "set NUMBA_CACHE_DIR to a folder that can be written"
        ) from error
    return folder


numba.config.CACHE_DIR = str(_prepared())


def jit(function: Callable[..., Any]) -> Any:
    """Decorator of every kernel. Multiply-add may be contracted; nothing else about rounding is relaxed."""
    return numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")(function)


def inline(function: Callable[..., Any]) -> Any:
    """Decorator of a helper that kernels call; it has no cache entry of its own."""
    return numba.njit(nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy", forceinline=True)(function)


@contextmanager
def one_compiles_first() -> Iterator[None]:
    """Hold this node's lock on the cache: two processes that fill one entry at once can crash."""
    folder = _prepared()
    # one lock per node, for flock does not reach across every shared file system
    with (folder / f"lock-{os.uname().nodename}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
