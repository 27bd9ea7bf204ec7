"""The kernels' machine code: compiled once per node, found again by every later process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ministream import jit

WARM_UP = """
from ministream.config import PrepSection
from ministream.prep import kernels as prep
from ministream.prep.corrections import Corrector
from ministream.recon import kernels
from ministream.recon.kernels import elementwise
kernels.warm_up(1)
Corrector(rows=1, cols=1, options=PrepSection())
compiled = [kernels._forward.forward, kernels._back.back, prep.correct]
compiled += [getattr(elementwise, name) for name in ("weigh", "divide", "combine", "dot", "tv_primal", "tv_dual")]
assert all(kernel.signatures for kernel in compiled)
print(sum(len(kernel.signatures) for kernel in compiled))
print(sum(sum(kernel.stats.cache_misses.values()) for kernel in compiled))
"""


def start(cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen([sys.executable, "-c", WARM_UP], env=environment, stdout=subprocess.PIPE, text=True)


def counts(process: subprocess.Popen[str]) -> tuple[int, int]:
    """How many functions the process has, and how many of them it compiled itself."""
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    functions, compiled = (int(line) for line in output.splitlines())
    return functions, compiled


@pytest.mark.slow
def test_processes_that_start_together_compile_everything_once(tmp_path: Path) -> None:
    found = [counts(process) for process in [start(tmp_path) for _ in range(3)]]
    functions = found[0][0]
    assert [own for own, _ in found] == [functions] * 3
    assert sum(compiled for _, compiled in found) == functions
    assert counts(start(tmp_path)) == (functions, 0)


def test_the_cache_is_one_per_kind_of_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = jit.cache_directory()
    assert own.parent == tmp_path / "ministream"
    monkeypatch.setattr(jit.llvm, "get_host_cpu_name", lambda: "another")
    assert jit.cache_directory() != own
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    assert jit.cache_directory() == tmp_path / "chosen"
