"""`ministream launch` from the outside: one command, two jobs, one outcome, and no process left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from ministream.storage import checkpoints
from tests.integration.jobs import MINISTREAM, Job, Lab, alive
from tests.ports import free_ports
from tests.waiting import eventually

QUICK = """
[source]
kind = "phantom"
rows = 4
cols = 32
projections = 30
[output]
pictures = false
[window]
length = 20
step = 10
"""
ENDLESS = QUICK.replace("projections = 30", "projections = 100000") + "[producer]\nrate = 20.0\n"


def launch(jobs: Lab, text: str, *options: str, name: str = "launch") -> Job:
    run = jobs.folder / f"{name}.toml"
    run.write_text(text)
    return jobs.start(name, [*MINISTREAM, "launch", str(run), "--out", str(jobs.out), *options])


def until_streaming(job: Job) -> None:
    job.until(lambda: "update 2" in job.text)


def descendants(pid: int) -> set[int]:
    """Every process that comes from one, by the kernel's word."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = {int(child) for thread in threads for child in (thread / "children").read_text().split()}
    return children.union(*map(descendants, children))


def running(pids: set[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and _state(pid) not in "ZX"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def rank_1(job: Job) -> int:
    """The process of rank 1."""
    needle = b"OMPI_COMM_WORLD_RANK=1"
    return next(
        pid for pid in descendants(job.process.pid) if needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )


def assert_gone(pids: set[int]) -> None:
    eventually(lambda: not running(pids), lambda: f"still running: {running(pids)}")


def test_one_command_runs_both_jobs(jobs: Lab) -> None:
    job = launch(jobs, QUICK, "--ranks", "2")
    assert job.wait() == 0, job.text
    summary = jobs.summary()
    assert summary["complete"]
    assert (summary["ranks"], summary["threads"]) == (2, 1)
    assert summary["tunnel"]["cipher"].startswith("TLS")
    assert {"receive", "prep", "write"} <= set(summary["stages_per_rank"][1])


def test_the_producer_may_be_reached_under_another_name(jobs: Lab) -> None:
    job = launch(jobs, QUICK, "--advertise", "localhost")
    assert job.wait() == 0, job.text
    assert json.loads((jobs.out / "summary.json").read_text())["complete"]


def test_several_ranks_may_receive(jobs: Lab) -> None:
    job = launch(jobs, QUICK, "--ranks", "3", "--ingress", "2", "--curve")
    assert job.wait() == 0, job.text
    summary = jobs.summary()
    assert summary["end_to_end"] == "CURVE"
    assert summary["complete"]
    assert summary["bytes"] == (30 + 10 + 10) * 4 * 32 * 2
    assert summary["tunnel"]["cipher"].startswith("TLS")
    assert "2 connections" in job.text


def test_results_may_go_by_way_of_a_scratch_disk(jobs: Lab) -> None:
    scratch = jobs.folder / "scratch"
    job = launch(jobs, QUICK + "write_freq = 1\n", "--scratch", str(scratch))
    assert job.wait() == 0, job.text
    assert {"recon.h5", "000001-recon.h5", "summary.json"} <= {path.name for path in jobs.out.iterdir()}
    assert not scratch.exists()


def test_a_producer_that_cannot_start_is_the_pairs_outcome(jobs: Lab) -> None:
    job = launch(jobs, '[source]\nkind = "dxchange"\nfile = "/no/such/scan.h5"\n')
    assert job.wait() == 2
    assert "/no/such/scan.h5" in job.text.splitlines()[-1]
    assert "Traceback" not in job.text


def test_a_reconstruction_that_fails_after_it_was_connected_tells_the_reason(jobs: Lab) -> None:
    # The producer feels it first, and must not have the last word.
    job = launch(jobs, QUICK, "--ranks", "2", "--recon-options", "--reference nowhere.h5")
    assert job.wait() == 2, job.text
    assert "reconstruction job failed with exit code 2: nowhere.h5" in job.text.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_reconstruction_write(jobs: Lab, number: signal.Signals) -> None:
    job = launch(jobs, ENDLESS, "--ranks", "2")
    until_streaming(job)
    children = descendants(job.process.pid)
    job.signal(number)
    assert job.wait() == 3, job.text
    assert not jobs.summary()["complete"]
    assert (jobs.out / "recon.h5").exists()
    assert_gone(children)


def test_nothing_outlives_a_launcher_that_is_killed(jobs: Lab) -> None:
    job = launch(jobs, ENDLESS, "--ranks", "2")
    until_streaming(job)
    children = descendants(job.process.pid)
    assert len(children) >= 6  # watcher, producer, its relay, mpirun, two ranks
    job.process.kill()
    assert_gone(children)
    left = [path for path in jobs.temporary.iterdir() if path.name.startswith(("ministream-", "s2cs-"))]
    assert not left


def test_a_rank_that_is_killed_ends_the_pair_with_rank_host_and_cause(jobs: Lab) -> None:
    job = launch(jobs, ENDLESS, "--ranks", "2", "--restarts", "0")
    until_streaming(job)
    os.kill(rank_1(job), signal.SIGKILL)
    assert job.wait() == 4, job.text
    assert f"rank 1 on {os.uname().nodename}: killed by SIGKILL" in job.text.splitlines()[-1]
    assert "----" not in job.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_rank_costs_no_projection(jobs: Lab, number: signal.Signals) -> None:
    """The reconstruction starts again by itself, and goes on from its newest checkpoint."""
    scan = QUICK.replace("projections = 30", "projections = 600")
    more = "[producer]\nrate = 40.0\n[checkpoint]\nevery_updates = 2\n[recon]\nhang_timeout_s = 3.0\n"
    job = launch(jobs, scan + more, "--ranks", "2")
    job.until(lambda: len(checkpoints(jobs.out / "checkpoint")) == 2)
    os.kill(rank_1(job), number)
    assert job.wait() == 0, job.text
    host = os.uname().nodename
    cause = {
        signal.SIGKILL: f"rank 1 on {host}: killed by SIGKILL",
        signal.SIGSTOP: f"rank 1 of 2 on {host} failed: stopped by a signal (SIGSTOP) for 3 s",
    }
    assert f"crashed ({cause[number]}): restart 1 of 3" in job.text
    assert "resumed from" in job.text
    summary = jobs.summary()
    assert summary["complete"]
    assert {summary["projections"][name] for name in ("sent", "received", "used", "written")} == {600}
    assert summary["updates"] == 60


def test_each_side_alone_with_addresses_known_beforehand(jobs: Lab) -> None:
    port = free_ports(1)
    credentials = jobs.folder / "certs"
    subprocess.run([*MINISTREAM, "certs", "init", str(credentials)], check=True, capture_output=True)
    common = ("--credentials", str(credentials))
    producer = launch(jobs, QUICK, "--as", "producer", "--port", str(port), *common, name="producer")
    recon = launch(jobs, QUICK, "--as", "recon", "--producer", f"127.0.0.1:{port}", *common, name="recon")
    assert recon.wait() == 0, recon.text + producer.text
    assert producer.wait() == 0, producer.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--as", "recon"], "--rendezvous DIR"),
        (["--as", "recon", "--credentials", "certs"], "--producer HOST:PORT"),
        (["--as", "recon", "--credentials", "certs", "--producer", "h:1", "--curve"], "ministream certs curve"),
        (["--port", "5000"], "--port 5000 is for one side alone"),
        (["--ranks", "99"], "99 ranks cannot share 4 detector rows: start at most 4"),
        (["--ranks", "4", "--set", "source.rows=3"], "4 ranks cannot share 3 detector rows"),
        (["--as", "recon", "--ranks", "5", "--dry-run"], "5 ranks cannot share 4 detector rows: start at most 4"),
        (["--ranks", "2", "--ingress", "3"], "--ingress 3: 2 ranks"),
        (["--launcher", "no-such-launcher -n 2"], "no program no-such-launcher"),
    ],
)
def test_what_cannot_be_launched_is_said_at_once(jobs: Lab, options: list[str], problem: str) -> None:
    job = launch(jobs, QUICK, *options)
    assert job.wait() in (2, 4)
    assert problem in job.text
    assert "Traceback" not in job.text
    assert "rank 0" not in job.text


def test_a_rendezvous_that_others_can_read_is_refused(jobs: Lab) -> None:
    folder = jobs.folder / "open"
    folder.mkdir(mode=0o755)
    job = launch(jobs, QUICK, "--rendezvous", str(folder))
    assert job.wait() == 4
    assert "chmod 700" in job.text


def test_the_launcher_itself_holds_no_secret_in_its_arguments(jobs: Lab) -> None:
    folder = jobs.folder / "pair"
    job = launch(jobs, ENDLESS, "--rendezvous", str(folder))
    until_streaming(job)
    token = (folder / "pair" / "token").read_text()
    arguments = [Path(f"/proc/{pid}/cmdline").read_text() for pid in alive(job.process.pid)]
    arguments += [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(job.process.pid)]
    assert token not in "".join(arguments) + job.text
    job.signal(signal.SIGINT)
    assert job.wait() == 3
    assert json.loads((folder / "recon.end").read_text())["code"] == 3
