"""The kernels' machine code: compiled once per node, found again by every later process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ministream import jit

WARM_UP = """
from ministream.config import PrepSection
from ministream.prep import kernels as prep
from ministream.prep.corrections import Corrector
from ministream.recon.backend import cpu
from ministream.recon.backend.cpu import elementwise, projections
cpu.warm_up(1)
Corrector(rows=1, cols=1, options=PrepSection())
Corrector(rows=1, cols=20, options=PrepSection(steps=("zingers",)))
compiled = [projections._forward.forward, projections._back.back, prep.correct, prep.mend_outliers]
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


PAIR = """
import numpy as np
from ministream.recon.backend import cpu
from ministream.recon.backend.cpu.layout import aligned_zeros
from ministream.recon.backend.cpu.projections import lane_blocks
from ministream.recon.geometry import Beams
angles = np.linspace(0, 3, 13)
beams, rng = Beams.at(angles, 40.5), np.random.default_rng(0)
x, y = (rng.random(shape, dtype=np.float32) for shape in ((70, 70, 112), (13, 80, 112)))
ax, aty = aligned_zeros(y.shape), aligned_zeros(x.shape)
cpu.forward(x, ax, beams)
cpu.back(y, aty, beams, factor=np.ones((70, 70), np.float32))
print(max(lanes for lanes, _, _ in lane_blocks(64)), float(ax.sum(dtype=float)), float(aty.sum(dtype=float)))
"""


@pytest.mark.parametrize(("name", "features", "widest"), [("haswell", "+avx,+avx2,+fma", 64), ("x86-64", "+sse2", 32)])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86-64")
def test_processors_without_wide_vectors_get_the_same_numbers(
    name: str, features: str, widest: int, tmp_path: Path
) -> None:
    def sums(**environment: str) -> list[float]:
        run = subprocess.run(
            [sys.executable, "-c", PAIR],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / name), **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=250,
        )
        return [float(word) for word in run.stdout.split()]

    lanes, *plain = sums(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert lanes == widest
    assert plain == pytest.approx(sums(NUMBA_CACHE_DIR=str(jit.cache_directory()))[1:], rel=1e-6)


KERNEL = """
from ministream.jit import jit

@jit
def successor(number):
    return number + 1

print(successor(1), sum(successor.stats.cache_misses.values()))
"""


def test_a_change_beside_a_kernel_compiles_it_again(tmp_path: Path) -> None:
    """numba looks at the kernel's own file alone, but a kernel contains code of the others."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "kernel.py").write_text(KERNEL)

    def run() -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, str(package / "kernel.py")]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    assert [run(), run()] == ["2 1", "2 0"]
    (package / "helper.py").write_text("STEP = 1\n")
    assert [run(), run()] == ["2 1", "2 0"]
