"""Memory and speed as `ministream check` predicts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ministream import config
from ministream.app import check
from ministream.errors import MachineError

CODE = "from ministream.cli import main; main()"
SCAN = ["source.kind=phantom", "source.rows=16", "source.cols=256", "source.projections=32", "window.length=32"]


def base_mib(cache: Path) -> float:
    """As a user's first prediction on a machine says it."""
    words = [word for text in SCAN for word in ("--set", text)]
    command = [sys.executable, "-c", CODE, "check", "--json", "--ranks", "2", *words]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return float(json.loads(done.stdout)["memory_mib"]["base"])


@pytest.mark.slow
def test_compiling_does_not_count(tmp_path: Path) -> None:
    """The first prediction on a machine compiles the kernels; it says the same as the second."""
    assert base_mib(tmp_path) == pytest.approx(base_mib(tmp_path), rel=0.03)


def test_the_prediction_is_the_models(tmp_path: Path) -> None:
    """`check` and `model` count the same memory, and the kernels measured here are the model's only limit."""
    settings = {"source": {"rows": 32, "cols": 64, "projections": 12}, "output": {"directory": str(tmp_path)}}
    found = check.check(config.load(None, settings | {"window": {"write_freq": 1, "step": 6}}), 2)
    assert found.prediction.bound == "update"
    visits = 32 * 64 * 64 * 12
    assert found.prediction.parts_s["update"] == pytest.approx(visits / found.gups / 1e9)
    assert found.prediction.parts_s["prep"] == pytest.approx(found.corrections_s)
    assert found.corrections == ("flats and darks", "-log")
    assert found.memory_mib["writing"] > 16 * 64 * 64 * 4 / 2**20


def test_the_chain_of_corrections_is_told_with_its_cost(tmp_path: Path) -> None:
    """Corrections of sinograms take a copy of the window, and time."""
    settings = {"source": {"rows": 8, "cols": 64, "projections": 12}, "output": {"directory": str(tmp_path)}}
    plain = check.check(config.load(None, settings), 1)
    found = check.check(config.load(None, settings | {"prep": {"steps": ["sf", "zingers"]}}), 1)
    assert found.corrections == (
        "flats and darks", "zingers (threshold = 0.2, size = 5)", "-log", "sf (size = 5)"
    )  # fmt: skip
    assert found.corrections_s > 0
    assert plain.memory_mib["sinograms"] == 0 < found.memory_mib["sinograms"] == found.memory_mib["window"]


def test_too_little_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 13)  # 64 MiB
    settings = {"source": {"rows": 32, "cols": 64, "projections": 12}, "output": {"directory": str(tmp_path)}}
    warnings = check.check(config.load(None, settings), 2).warnings
    assert any("this machine has 0.1 GiB: use more nodes or a shorter window" in warning for warning in warnings)


def test_the_ranks_that_receive_are_named(tmp_path: Path) -> None:
    small = {"source": {"rows": 9, "cols": 16, "projections": 8}, "output": {"directory": str(tmp_path)}}
    predicted = check.check(config.load(None, small | {"stream": {"ingress": 2}}), 3)
    assert predicted.prediction.memory.receiving == (0, 2)
    assert set(predicted.peak_mib) == {"rank 0", "ranks that receive", "other ranks"}


def test_an_idle_rank_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_IDLE", "raise SystemExit('no such kernel')")
    with pytest.raises(MachineError, match="cannot measure the memory of an idle rank: no such kernel"):
        check.idle_rank_mib(1)
