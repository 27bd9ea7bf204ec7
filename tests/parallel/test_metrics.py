"""Rank 0's metrics are the books of the run, with the stages of every rank."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ministream import config
from ministream.app import metrics
from ministream.app.recon import job
from ministream.app.recon.observers.metrics import TellMetrics
from tests.parallel.scans import process, producing, scan
from tests.scraping import scrape
from tests.waiting import eventually

__all__ = ["process"]

pytestmark = pytest.mark.mpi


def test_the_metrics_are_the_books_of_the_run(comm, shared_tmp, monkeypatch):
    opened, shown = [], []

    def noted(*args, **known):
        opened.append(metrics.open_endpoint(*args, **known))
        return opened[-1]

    told = TellMetrics.finished

    def finished(self, written) -> None:
        told(self, written)
        if opened:

            def read() -> bool:
                self.poll()
                shown.append(scrape(opened[0].url))
                return len({rank for rank, _ in shown[-1]["ministream_stage_seconds_total"]}) == comm.size

            eventually(read)

    monkeypatch.setattr(job, "open_endpoint", noted)
    monkeypatch.setattr(TellMetrics, "finished", finished)
    with producing(comm, scan()) as address:
        given = {
            "stream": {"connect": address},
            "window": {"length": 4, "step": 2},
            "recon": {"threads": 1},
            "output": {
                "directory": shared_tmp,
                "metrics": "127.0.0.1:0",
                "live": "tcp://127.0.0.1:0",
                "pictures": False,
            },
        }
        summary = job.recon(
            lambda: config.load(None, given), ranks=None, announce_to=None, log_level=None,
            console=Console(file=io.StringIO()),
        )  # fmt: skip
    if summary is None:
        return
    assert summary.failures == {}
    found = shown[-1]
    counts = {state: value for (state,), value in found["ministream_projections_total"].items()}
    all_used = dict.fromkeys(("received", "used", "imaged", "written"), 8)
    assert counts == all_used | dict.fromkeys(("refused", "repeated", "mended"), 0)
    assert found["ministream_updates_total"] == {(): summary.updates}
    assert found["ministream_iterations_total"] == {(): sum(summary.iterations)}
    assert found["ministream_phase"]["complete",] == 1
    assert sum(found["ministream_phase"].values()) == 1
    assert found["ministream_ranks"] == {(): comm.size}
    assert found["ministream_latency_seconds_count"]["received",] == 8
    assert found["ministream_latency_seconds_count"]["image",] == 8
    assert found["ministream_latency_seconds_sum"]["received",] <= found["ministream_latency_seconds_sum"]["image",]
    assert found["ministream_lag_projections"] == {(): 0}
    assert found["ministream_received_bytes_total"][()] >= summary.bytes > 0
    assert found["ministream_scan_projections"] == {(): 8}
    assert found["ministream_last_arrival_timestamp_seconds"][()] > 1e9
    assert {code for (code,) in found.get("ministream_scan_warnings", {})} == {one.code for one in summary.warnings}
    assert {stage for rank, stage in found["ministream_stage_seconds_total"] if rank == "0"} >= {"prep", "update"}
