"""Whatever watches a run may fail, of whatever kind it is: volume and summary are written, and the failure is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ministream import config, registry, storage
from ministream.app.recon.job import recon
from ministream.app.recon.live_server import LiveServer
from ministream.app.recon.observers.metrics import TellMetrics
from ministream.app.recon.observers.publisher import ReconstructionPublisher
from ministream.monitor import Summary
from ministream.parallel.mpi import Comm
from tests.parallel.scans import process, producing, scan
from tests.ports import free_ports

__all__ = ["process"]

pytestmark = pytest.mark.mpi

OBSERVERS = registry.names("ministream.app.recon.observers")


@dataclass
class Case:
    """A run in `out` that has every observer, on several ranks."""

    comm: Comm
    out: Path
    reference: Path
    port: int
    console: Console
    truth: str | None = None

    def run(self, **output) -> Summary | None:
        with producing(self.comm, scan(truth=self.truth)) as address:
            given = {
                "stream": {"connect": address},
                "window": {"length": 4, "step": 4, "write_freq": 1},
                "recon": {"threads": 1},
                "checkpoint": {"every_updates": 1},
                "output": {
                    "directory": self.out,
                    "reference": self.reference,
                    "publish": f"tcp://127.0.0.1:{self.port}",
                    "live": "tcp://127.0.0.1:0",
                    "metrics": "127.0.0.1:0",
                }
                | output,
            }
            return recon(
                lambda: config.load(None, given), ranks=None, announce_to=None, log_level=None, console=self.console
            )


@pytest.fixture
def case(comm, shared_tmp) -> Case:
    port = comm.bcast(free_ports(1) if comm.rank == 0 else 0)
    case = Case(comm, shared_tmp / "first", shared_tmp / "none.h5", port, Console(file=io.StringIO()))
    case.run(reference=None)
    case.reference, case.out = case.out / storage.FINAL, shared_tmp / "out"
    if comm.rank == 0:
        case.out.mkdir()
    comm.barrier()
    return case


def closed_terminal(case: Case, _monkeypatch) -> str:
    case.console.file.close()
    return "closed file"


def blocked(name: str) -> Callable[[Case, object], str]:
    """A folder that is not empty stands where the observer's file should be."""

    def block(case: Case, _monkeypatch) -> str:
        if case.comm.rank == 0:
            (case.out / name / "inside").mkdir(parents=True)
        case.comm.barrier()
        return name

    return block


def blocked_checkpoints(case: Case, _monkeypatch) -> str:
    """A file stands where the folder of checkpoints should be."""
    if case.comm.rank == 0:
        (case.out / "checkpoint").touch()
    case.comm.barrier()
    return "checkpoint"


def malformed_truth(case: Case, _monkeypatch) -> str:
    case.truth = "{}"
    return "truth recipe is malformed"


def broken_socket(_case: Case, monkeypatch) -> str:
    def publish(*_args, **_known) -> None:
        raise RuntimeError("the socket broke")

    monkeypatch.setattr(ReconstructionPublisher, "publish", publish)
    return "RuntimeError: the socket broke"


def broken_live_view(_case: Case, monkeypatch) -> str:
    def publish(*_args, **_known) -> None:
        raise RuntimeError("the view broke")

    monkeypatch.setattr(LiveServer, "publish", publish)
    return "RuntimeError: the view broke"


def broken_metrics(_case: Case, monkeypatch) -> str:
    def finished(*_args, **_known) -> None:
        raise RuntimeError("the metrics broke")

    monkeypatch.setattr(TellMetrics, "finished", finished)
    return "RuntimeError: the metrics broke"


SABOTAGE = {
    "checkpoints": [blocked_checkpoints],
    "live": [broken_live_view],
    "metrics": [broken_metrics],
    "pictures": [blocked("orthogonal.png"), malformed_truth],
    "progress": [closed_terminal],
    "publisher": [broken_socket],
    "quality": [blocked("quality.csv"), blocked("quality.png")],
    "snapshots": [blocked("000002-recon.h5")],
}


def test_without_a_failure_everything_is_written(case):
    summary = case.run()
    if summary is None:
        return
    names = {path.name for path in case.out.iterdir()}
    pictures = {"orthogonal.png", "over-time.png", "quality.png"}
    snapshots = {"000001-recon.h5", "000002-recon.h5"}
    assert names == {"recon.h5", "summary.json", "quality.csv"} | pictures | snapshots
    assert {Path(file).name for file in summary.files} == names - {"summary.json", "quality.csv"}
    assert summary.failures == {}
    assert json.loads((case.out / "summary.json").read_text()) == summary.as_dict()


@pytest.mark.parametrize(("name", "which"), [(name, k) for name in OBSERVERS for k in range(len(SABOTAGE[name]))])
def test_one_that_fails_is_told_and_costs_nothing(case, monkeypatch, capsys, name, which):
    said = SABOTAGE[name][which](case, monkeypatch)
    summary = case.run()
    if summary is None:
        return
    assert summary.complete
    assert list(summary.failures) == [name]
    assert said in summary.failures[name]
    assert json.loads((case.out / "summary.json").read_text())["failures"] == summary.failures
    assert all(Path(file).is_file() for file in summary.files)
    volume = storage.read_volume(case.out / storage.FINAL)
    assert np.array_equal(volume, storage.read_volume(case.reference))
    assert capsys.readouterr().err.count(f" {name} failed, the run continues: ") == 1
