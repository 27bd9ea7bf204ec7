"""The numba policy: how kernels are compiled, and where their machine code is cached.

Kernels are compiled without Python objects, without the GIL (threads are Python's, see
`recon.backend.cpu.threads`) and cached on disk. Nodes of a cluster may share a home directory but not a
processor, so the cache is keyed by what numba would compile for.

numba unpickles and executes what it finds in the cache, so only a folder that nobody else can change is used.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core.caching import FunctionCache

from ministream import log, private
from ministream.errors import ConfigError

# Enough to detect a full disk or quota; the compiled kernels take a few MB.
_PROBE_BYTES = 1 << 20

_LOG = log.get(__name__)


def processor() -> tuple[str, str]:
    """Name and features ("+avx2,-avx512f,…") of the target processor: this one, or NUMBA_CPU_NAME."""
    features = numba.config.CPU_FEATURES
    return (
        numba.config.CPU_NAME or llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten() if features is None else features,
    )


def cache_directory() -> Path:
    """The preferred cache folder: NUMBA_CACHE_DIR, or a folder per processor in the user's cache directory.

    Raises RuntimeError for a user without a home directory.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    return Path(given) if given else _user_cache()


def _user_cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ministream" / _key()


def _key() -> str:
    cpu, features = processor()
    return f"{cpu}-{hashlib.sha256(f'{features} {numba.__version__}'.encode()).hexdigest()[:8]}"


def _temporary_cache() -> Path:
    """One for all processes of the user on this machine."""
    return Path(tempfile.gettempdir()) / f"ministream-kernels-{os.geteuid()}" / _key()


def _usable(folder: Path) -> Path:
    """Make the folder private, and check its free space and file locks. Raises ConfigError or OSError."""
    folder = private.make_folder(folder)
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.posix_fallocate(probe.fileno(), 0, _PROBE_BYTES)
        fcntl.flock(probe, fcntl.LOCK_EX)
    return folder


def _shared_folder() -> Path | None:
    """The first folder that all processes of the user on this node can use; None if there is none."""
    choices = [cache_directory, _user_cache] if os.environ.get("NUMBA_CACHE_DIR") else [_user_cache]
    for choice in [*choices, _temporary_cache]:
        try:
            return _usable(choice())
        except (ConfigError, RuntimeError, OSError) as error:
            _LOG.warning("compiled kernels: %s; trying another folder (NUMBA_CACHE_DIR sets it)", error)
    return None


def _own_folder() -> Path | None:
    """A folder for this process alone, removed at exit; None if there is no space for it."""
    try:
        folder = tempfile.mkdtemp(prefix="ministream-kernels-")
    except OSError as error:
        _LOG.warning("compiled kernels: %s; they are not kept", error)
        return None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _LOG.warning("compiled kernels: kept in %s until this process ends; every process compiles its own", folder)
    return Path(folder)


_SHARED = _shared_folder()
_FOLDER = _SHARED or _own_folder()
if _FOLDER is not None:
    numba.config.CACHE_DIR = str(_FOLDER)


def shared_cache() -> Path | None:
    """The cache folder in use by all processes of the user on this node; None if every process has its own."""
    return _SHARED


@functools.cache
def _digest(folder: Path) -> str:
    """Digest of the sources in a kernel's folder."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))).hexdigest()


class _KernelCache(FunctionCache):  # type: ignore[misc] # numba is untyped
    """Numba's cache; on a full disk the kernel is not cached, and the next process compiles it again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # kernels contain code from other files in their folder, but numba checks only their own file, and only after it
        # has loaded cached types, which may come from an earlier release
        self._cache_file._version = f"{numba.__version__} {_digest(Path(function.__code__.co_filename).parent)}"

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _LOG.warning("compiled kernel not kept: %s; free space in %s, or set NUMBA_CACHE_DIR", error, _FOLDER)


def jit(function: Callable[..., Any]) -> Any:
    """Decorator of every kernel. Multiply-add may be contracted; all other rounding is strict."""
    kernel = numba.njit(nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")(function)
    if _FOLDER is not None:
        kernel._cache = _KernelCache(function)  # what cache=True does, with numba's own class
    return kernel


def inline(function: Callable[..., Any]) -> Any:
    """Decorator of a helper function that kernels call; it has no separate cache entry."""
    return numba.njit(nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy", forceinline=True)(function)


def reordering(function: Callable[..., Any]) -> Any:
    """Like `inline`, for sums whose terms may be added in any order, so that they are vectorised."""
    flags = {"contract", "nsz", "arcp", "reassoc"}
    return numba.njit(nogil=True, fastmath=flags, error_model="numpy", forceinline=True)(function)


def compile_all(kernels: Mapping[str, Callable[[], object]]) -> None:
    """Compile or load every kernel by a call of it; the processes of a node share the compiling.

    Each compiles the first kernel that no other process holds, and loads the rest from the cache at the end. No two
    processes compile the same kernel: concurrent writes of one entry of the cache can crash.
    """
    for wait in (False, True):
        kernels = {name: call for name, call in kernels.items() if not _called_alone(name, call, wait=wait)}


def _called_alone(name: str, call: Callable[[], object], *, wait: bool) -> bool:
    """Call while this process holds the kernel's lock; False, without the call, if another one does."""
    if _SHARED is None:
        call()
        return True
    # one lock per node, because flock does not work across nodes on every shared file system
    path = _SHARED / f"lock-{os.uname().nodename}-{name}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        call()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
