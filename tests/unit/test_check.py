"""What `ministream check` predicts of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ministream import config
from ministream.app import check
from ministream.app.recon.assignment import assign
from ministream.errors import MachineError
from ministream.model import Scan

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


def writing(**changes: dict[str, object]) -> tuple[int, int]:
    """Bytes that writing takes on a rank, and that MPI-IO takes on rank 0."""
    scan = Scan(scan_id="s", rows=16, cols=256, projections=32, flats=1, darks=1, dtype="<u2")
    known = config.load(None, changes)
    parts = check._memory(assign(0, 2, known, scan, threads=1))
    return parts["writing"], parts["MPI-IO"]


def test_snapshots_that_are_written_behind_need_a_copy() -> None:
    plain, mpi_io = writing()
    behind, _ = writing(window={"write_freq": 1})
    waited, _ = writing(window={"write_freq": 1}, output={"writer": "hdf5"})
    _, no_mpi_io = writing(output={"writer": "direct"})
    assert behind - plain == 256 * 256 * 8 * 4
    assert waited == plain
    assert no_mpi_io == 0 < mpi_io


def test_each_receiving_rank_holds_the_credit_of_its_own_band() -> None:
    scan = Scan(scan_id="s", rows=10, cols=256, projections=32, flats=0, darks=0, dtype="<u2")
    credit = {}
    for ingress in (1, 2, 4):
        known = config.load(None, {"stream": {"ingress": ingress}})
        credit[ingress] = check._memory(assign(0, 4, known, scan, threads=1))["credit"]
    # 10 rows on 4 ranks are slabs of 3, 3, 2, 2
    assert credit == {1: 32 * 10 * 512, 2: 32 * 6 * 512, 4: 32 * 3 * 512}


def test_the_ranks_that_receive_are_named(tmp_path: Path) -> None:
    small = {"source": {"rows": 9, "cols": 16, "projections": 8}, "output": {"directory": str(tmp_path)}}
    predicted = check.check(config.load(None, small | {"stream": {"ingress": 2}}), 3)
    assert predicted.receiving == (0, 2)
    assert set(predicted.peak_mib) == {"rank 0", "ranks that receive", "other ranks"}


def test_an_idle_rank_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_IDLE", "raise SystemExit('no such kernel')")
    with pytest.raises(MachineError, match="idle rank cannot be measured: no such kernel"):
        check._base_mib(1)
