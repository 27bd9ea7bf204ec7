"""Whole jobs with metrics and a JSON log, as an operator's programs see them."""

from __future__ import annotations

import contextlib
import json
import shlex
import urllib.error
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.jobs import MINISTREAM, Lab
from tests.ports import free_ports
from tests.scraping import scrape

SCAN = ["source.rows=6", "source.cols=48", "source.projections=40", "window.length=20", "window.step=10"]
SETTINGS = [word for setting in (*SCAN, "output.pictures=false") for word in ("--set", setting)]
KEYS = {"time", "level", "process", "logger", "message"}


def events(path: Path) -> list[dict]:
    """Every line of a job's standard error; each must be an event."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for event in found:
        assert KEYS <= set(event) <= KEYS | {"rank", "error"}
        assert datetime.fromisoformat(event["time"]).utcoffset() is not None
        assert event["level"] in {"DEBUG", "INFO", "WARNING", "ERROR"}
        assert (event["process"] == f"rank {event['rank']}") if "rank" in event else "rank" not in event["process"]
    return found


def apart(path: Path, command: list[str]) -> list[str]:
    """The command, with its standard error in a file of its own."""
    return ["sh", "-c", f"exec {shlex.join(command)} 2> {shlex.quote(str(path))}"]


def secrets_in(folder: Path) -> list[str]:
    """Lines of every key below a folder; a file may go at any time."""
    found = []
    for file in [*folder.rglob("*.key"), *folder.rglob("*.secret")]:
        with contextlib.suppress(FileNotFoundError):
            found += [line for line in file.read_text().splitlines() if line and "-----" not in line]
    return found


@pytest.mark.slow
def test_every_line_of_a_pair_is_an_event_without_secrets(jobs: Lab, tmp_path: Path) -> None:
    log, secrets = tmp_path / "stderr", set[str]()
    command = [*MINISTREAM, "launch", *SETTINGS, "--curve", "--out", str(jobs.out), "--ranks", "2", "--threads", "1"]
    pair = jobs.start("launch", apart(log, [*command, "--log-format", "json", "--log-level", "DEBUG"]))

    def secrets_are_there() -> bool:
        secrets.update(secrets_in(jobs.temporary))
        return any(len(secret) == 64 for secret in secrets) and len(secrets) > 5

    pair.until(secrets_are_there)
    assert pair.wait() == 0, pair.text + log.read_text()
    found = events(log)
    assert {event.get("rank") for event in found} >= {None, 0}
    assert {"producer", "launch"} <= {event["process"] for event in found}
    assert any("control server on" in event["message"] for event in found)
    assert not [secret for secret in secrets if secret in log.read_text()]


def test_a_command_that_fails_says_so_in_an_event(jobs: Lab, tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    command = [*MINISTREAM, "produce", "--log-format", "json", "--set", "source.rows=0"]
    failing = jobs.start("produce", apart(log, command))
    assert failing.wait() == 2
    last = events(log)[-1]
    assert last["logger"] == "ministream.command"
    assert last["level"] == "ERROR"
    assert "rows" in last["message"]


def test_both_jobs_are_watched_while_they_run(jobs: Lab) -> None:
    port = free_ports(2)
    addresses = [f"127.0.0.1:{port + job}" for job in range(2)]
    producer = jobs.produce(*SETTINGS, "--repeat", "30", "--rate", "40", "--metrics", addresses[0])
    data = jobs.announced("producer", producer)["data"]
    recon = jobs.recon(1, *SETTINGS, "--connect", data, "--metrics", addresses[1])
    found: list[dict] = [{}, {}]

    def told(job: int, name: str, *labels: str) -> float:
        try:
            found[job] = scrape(f"http://{addresses[job]}/metrics")
        except urllib.error.URLError:  # it does not listen yet
            return 0
        return found[job].get(name, {}).get(labels, 0)

    recon.until(lambda: told(1, "ministream_updates_total") >= 2)
    producer.until(lambda: told(0, "ministream_latency_seconds_count", "sent") >= 20)
    assert found[1]["ministream_phase"]["live",] == 1
    counts = {state: count for (state,), count in found[1]["ministream_projections_total"].items()}
    assert counts["received"] >= counts["used"] >= counts["imaged"] >= 20
    assert {until for (until,) in found[1]["ministream_latency_seconds_count"]} == {"received", "image"}
    assert found[0]["ministream_sent_projections_total"][()] >= 20
    producer.stop()
    recon.stop()
