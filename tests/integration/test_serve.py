"""The standing reconstruction job takes one scan after another, each with its own folder."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ministream.storage import read_volume
from tests.integration.jobs import MINISTREAM, Job, Lab, lab
from tests.ports import free_ports

SHAPE = ["--set", "source.rows=4", "--set", "source.cols=32"]
WINDOW = ["--set", "window.length=20", "--set", "window.step=10", "--set", "output.pictures=false"]


@pytest.fixture
def jobs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path) as running:
        yield running


def serve(jobs: Lab, ranks: int, *options: str) -> Job:
    command = [*MINISTREAM, "serve", "--out", str(jobs.out), "--ranks", str(ranks), *WINDOW, *options]
    return jobs.start("serve", ["mpirun", "-n", str(ranks), *command] if ranks > 1 else command)


def produce(jobs: Lab, name: str, projections: int, *options: str) -> Job:
    what = ["--source", "phantom", *SHAPE, "--set", f"source.projections={projections}"]
    return jobs.start(name, [*MINISTREAM, "produce", *what, *options])


def summary(jobs: Lab, number: int) -> dict:
    return json.loads((jobs.out / f"{number:04d}" / "summary.json").read_text())


def test_scans_come_one_after_another_until_a_signal(jobs: Lab) -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)}"
    service = serve(jobs, 2, "--connect", address)
    for number, projections in ((1, 30), (2, 50)):
        producer = produce(jobs, f"producer-{number}", projections, "--listen", address)
        assert producer.wait() == 0, producer.text + service.text
        service.until(lambda n=number: f"results in {jobs.out}/{n:04d}" in service.text)
        found = summary(jobs, number)
        assert found["complete"]
        assert found["projections"]["used"] == projections
        assert read_volume(jobs.out / f"{number:04d}" / "recon.h5").shape == (4, 32, 32)
    assert summary(jobs, 1)["scan_id"] != summary(jobs, 2)["scan_id"]
    service.signal(signal.SIGUSR1)
    assert service.wait() == 0, service.text
    assert "2 scans: 2 complete, 0 incomplete, 0 failed; stopped by SIGUSR1" in service.text
    assert sorted(path.name for path in jobs.out.iterdir()) == ["0001", "0002"]


def test_a_lost_producer_costs_its_own_scan_alone(jobs: Lab) -> None:
    control = f"127.0.0.1:{free_ports(1)}"
    tunnel = ["--control", control, "--insecure"]
    service = serve(jobs, 1, "--producer", control, "--insecure", "--scans", "2", "--set", "stream.outage_timeout_s=1")
    lost = produce(jobs, "lost", 100_000, *tunnel, "--rate", "200")
    service.until(lambda: "update 2" in service.text)
    lost.signal(signal.SIGKILL)
    service.until(lambda: "is incomplete" in service.text)
    whole = produce(jobs, "whole", 30, *tunnel)
    assert service.wait() == 3, service.text
    assert whole.wait() == 0, whole.text
    assert not summary(jobs, 1)["complete"]
    assert summary(jobs, 2)["complete"]
    assert "2 scans: 1 complete, 1 incomplete, 0 failed" in service.text


def test_a_signal_finishes_the_current_scan(jobs: Lab) -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)}"
    service = serve(jobs, 1, "--connect", address)
    producer = produce(jobs, "producer", 100_000, "--listen", address, "--rate", "200")
    service.until(lambda: "update 2" in service.text)
    service.signal(signal.SIGTERM)
    assert service.wait() == 3, service.text
    assert producer.wait() == 4, producer.text  # the receiver left
    assert "1 scans: 0 complete, 1 incomplete, 0 failed; stopped by SIGTERM" in service.text
    assert read_volume(jobs.out / "0001" / "recon.h5").any()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "no route to the producer"),
        (["--connect", "tcp://127.0.0.1:9", "--set", "checkpoint.directory=one"], "one folder for all scans"),
        (["--connect", "tcp://127.0.0.1:9", "--set", "checkpoint.resume=one"], "--resume continues one scan"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(jobs: Lab, options: list[str], problem: str) -> None:
    service = serve(jobs, 1, *options)
    assert service.wait() == 2
    assert problem in service.text
