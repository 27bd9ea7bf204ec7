"""The compiled kernels: for this processor, and in a folder that all processes of the user share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ministream import jit
from ministream.app.doctor.finding import Finding, Subject, doubtful, good
from ministream.recon import backend

_SLICES = 8


def examine(_subject: Subject) -> Iterator[Finding]:
    """Processor, kernels, cache."""
    name, features = jit.processor()
    vectors = next((title for flag, title in _VECTORS.items() if f"+{flag}" in features.split(",")), "")
    if vectors:
        yield good("processor", f"{name}, {vectors}")
    else:
        text = "the reconstruction is several times slower without AVX2: use another machine"
        yield doubtful("processor", f"{name}, no AVX2", text)
    began = time.perf_counter()
    backend.default().warm_up(_SLICES)
    yield good("kernels", f"ready after {time.perf_counter() - began:.1f} s")
    yield _cache()


_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "neon": "NEON"}


def _cache() -> Finding:
    wanted, folder = _wanted(), jit.shared_cache()
    if folder is not None and wanted is not None and folder == wanted.resolve():
        return good("kernel cache", str(folder))
    found = f"{folder} in place of {wanted}" if folder is not None else "none: every process compiles its own kernels"
    remedy = "the log says why. Choose a folder that only you can write to: export NUMBA_CACHE_DIR=FOLDER"
    return doubtful("kernel cache", found, remedy)


def _wanted() -> Path | None:
    try:
        return jit.cache_directory()
    except RuntimeError:
        return None
