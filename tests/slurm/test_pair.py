"""Pairs of jobs as a user of a cluster submits them, on a real Slurm."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ministream import jit
from tests.ports import free_ports
from tests.slurm.lab import Lab
from tests.waiting import HANG_S, eventually

SLURM = Path(__file__).resolve().parents[2] / "slurm"
ROWS, COLS = 6, 32
QUICK = {"projections": 40, "rate": 1000.0}
ENDLESS = {"projections": 100000, "rate": 20.0}

# Jobs of one test machine share its cores, and should not compile what other tests have compiled.
ENVIRONMENT = {"NUMBA_CACHE_DIR": str(jit.cache_directory())}


class Runs:
    """Submits pairs in one folder; `out` is where the results and logs go."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.out = lab, folder / "out"
        self._folder = folder

    def file(self, *, projections: int, rate: float, kind: str = "phantom", **source: object) -> Path:
        """A run file."""
        path = self._folder / "run.toml"
        shape = {"rows": ROWS, "cols": COLS, "projections": projections, "seed": 7} if kind == "phantom" else {}
        options = "\n".join(f"{key} = {json.dumps(value)}" for key, value in ({"kind": kind} | shape | source).items())
        rest = "[output]\npictures = false\n[window]\nlength = 20\nstep = 10\n"
        path.write_text(f"[source]\n{options}\n[producer]\nrate = {rate}\n{rest}")
        return path

    def submit(self, *words: str | Path, timeout_s: float = HANG_S, **env: str) -> subprocess.CompletedProcess[str]:
        """`slurm/submit.sh` with the producer on one node and the reconstruction on both."""
        where = (
            "--producer-partition",
            "beamline",
            "--producer-sbatch",
            "--nodelist=n2",
            "--recon-partition",
            "compute",
        )
        return self.lab.run(
            SLURM / "submit.sh",
            *words,
            "--out",
            self.out,
            "--threads",
            "1",
            *where,
            *self._hosts("--"),
            timeout_s=timeout_s,
            **ENVIRONMENT,
            **env,
        )

    def start(self, side: str, *words: str) -> str:
        """Submit one side's job by itself, as its script's header says; its number."""
        self.out.mkdir(exist_ok=True)
        ran = self.lab.run(
            "sbatch",
            "--parsable",
            f"--output={self.out}/{side}-%j.log",
            "--cpus-per-task=1",
            SLURM / f"{side}.sbatch",
            self._folder / "run.toml",
            "--rendezvous",
            self.out / "rendezvous",
            "--out",
            self.out,
            *words,
            *self._hosts(),
            **ENVIRONMENT,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def _hosts(self, *before: str) -> tuple[str, ...]:
        """Nodes without a network of their own are found on the loopback."""
        return () if self.lab.networks else (*before, "--host", "localhost")

    def outcome(self, side: str) -> dict[str, object]:
        """How a side ended, by its own account."""
        return json.loads((self.out / "rendezvous" / f"{side}.end").read_text())

    def log(self, side: str) -> str:
        """The log of one side's job."""
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.out.glob(f"{side}-*.log")))

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for a sign of progress; without it the logs explain."""
        eventually(done, lambda: self.log("producer") + self.log("recon"))

    def ended(self, *jobs: str) -> None:
        """Wait until the jobs are over."""
        self.until(lambda: not set(jobs) & set(self.lab.jobs()))

    def streaming(self) -> bool:
        """Whether projections have reached an image."""
        return "update 1" in self.log("recon") or "update 2" in self.log("recon")

    def volume(self) -> tuple[np.ndarray, dict[str, object]]:
        """The final volume and its attributes."""
        with h5py.File(self.out / "recon.h5") as file:
            return file["data"][()], dict(file.attrs) | dict(file["data"].attrs)

    def summary(self) -> dict[str, object]:
        """The reconstruction job's summary.json."""
        return json.loads((self.out / "summary.json").read_text())


@pytest.fixture
def runs(lab: Lab, tmp_path: Path):
    runs = Runs(lab, tmp_path)
    yield runs
    for job in lab.jobs():
        lab.run("scancel", "--full", "--signal=KILL", job)
        lab.run("scancel", job)
    runs.ended(*lab.jobs())


def test_the_submitted_pair_makes_the_volume(runs: Runs) -> None:
    ran = runs.submit(runs.file(**QUICK), "--recon-nodes", "2", "--ranks-per-node", "2", "--wait")
    assert ran.returncode == 0, ran.stdout + ran.stderr + runs.log("recon")
    data, _ = runs.volume()
    assert data.shape == (ROWS, COLS, COLS)
    summary = runs.summary()
    assert summary["complete"]
    assert summary["ranks"] == 4
    assert summary["projections"]["used"] == QUICK["projections"]
    assert summary["tunnel"]["cipher"]
    # Nothing that opens a door is left, and each side says how it ended.
    assert {path.name for path in (runs.out / "rendezvous").iterdir() if not path.name.startswith(".")} == {
        "producer.end",
        "recon.end",
    }
    assert runs.outcome("producer")["code"] == runs.outcome("recon")["code"] == 0


def test_each_node_may_receive_a_band(runs: Runs) -> None:
    run = runs.file(**QUICK)
    run.write_text(run.read_text() + "[stream]\ningress = 2\n")
    ran = runs.submit(run, "--recon-nodes", "2", "--ranks-per-node", "2", "--wait")
    assert ran.returncode == 0, ran.stdout + ran.stderr + runs.log("recon")
    summary = runs.summary()
    assert summary["complete"]
    assert summary["ranks"] == 4
    assert summary["projections"]["used"] == QUICK["projections"]
    assert "2 connections" in runs.log("recon")


def test_the_receiver_may_come_first_and_one_rank_gives_the_same_volume(runs: Runs) -> None:
    runs.file(**QUICK)
    recon = runs.start("recon")
    runs.until((runs.out / "rendezvous" / "recon.json").exists)
    producer = runs.start("producer")
    runs.ended(recon, producer)
    assert runs.outcome("recon")["code"] == 0, runs.log("recon")
    assert runs.summary()["complete"]


def test_a_heterogeneous_job_is_one_pair(runs: Runs) -> None:
    if not runs.lab.networks:
        pytest.skip("the script names the nodes, which have no names without networks")
    # as from inside of an interactive job that has asked for memory
    inherited = {"SLURM_MEM_PER_NODE": "100", "SLURM_MEM_PER_CPU": "50"}
    ran = runs.submit(runs.file(**QUICK), "--het", "--ranks-per-node", "2", "--wait", **inherited)
    assert ran.returncode == 0, ran.stdout + ran.stderr + runs.log("producer")
    assert runs.summary()["ranks"] == 2


def test_a_producer_at_another_facility_needs_no_shared_folder(runs: Runs, tmp_path: Path) -> None:
    run, certificates, log, port = runs.file(**QUICK), tmp_path / "certs", tmp_path / "there.log", free_ports(1)
    gateway = runs.lab.host(1)
    ministream = Path(sys.executable).with_name("ministream")
    hosts = [word for number in (1, 2) for word in ("--host", runs.lab.host(number))]
    subprocess.run([ministream, "certs", "init", certificates, *hosts], check=True)
    there = ("launch", run, "--as", "producer", "--port", port, "--host", gateway, "--credentials", certificates)
    wrapped = shlex.join(map(str, (ministream, *there, "--out", tmp_path)))
    runs.lab.run("sbatch", "--nodelist=n1", f"--output={log}", "--wrap", wrapped)
    runs.until(lambda: log.exists() and "listens on" in log.read_text())
    here = ("--producer", f"{gateway}:{port}", "--credentials", certificates, "--recon-sbatch", "--nodelist=n2")
    ran = runs.submit(run, *here, "--wait")
    assert ran.returncode == 0, ran.stdout + ran.stderr + runs.log("recon")
    assert runs.summary()["complete"]
    assert not list(runs.out.glob("producer-*.log"))


@pytest.mark.parametrize(("side", "missing"), [("producer", "the reconstruction job"), ("recon", "the producer job")])
def test_a_missing_partner_is_waited_for_and_named(runs: Runs, side: str, missing: str) -> None:
    runs.file(**QUICK)
    runs.ended(runs.start(side, "--partner-timeout", "2"))
    assert runs.outcome(side)["code"] == 4
    assert f"waiting for {missing} in" in runs.log(side)


def test_a_partner_that_fails_ends_the_other_which_says_why(runs: Runs) -> None:
    ran = runs.submit(runs.file(**QUICK, kind="dxchange", file="/no/such/scan.h5"), "--wait")
    assert ran.returncode == 2
    assert "/no/such/scan.h5" in ran.stdout
    assert "/no/such/scan.h5" in runs.log("recon")
    assert not (runs.out / "recon.h5").exists()


def test_a_producer_cancelled_midway_leaves_an_incomplete_volume(runs: Runs) -> None:
    runs.file(**ENDLESS)
    producer, recon = runs.start("producer"), runs.start("recon")
    runs.until(runs.streaming)
    runs.lab.run("scancel", producer)
    runs.ended(producer, recon)
    assert runs.outcome("recon")["code"] == 3, runs.log("recon")
    assert not runs.summary()["complete"]
    assert runs.volume()[0].any()
    assert "SIGTERM" in runs.outcome("producer")["reason"]


def test_a_reconstruction_cancelled_midway_writes_and_ends_the_producer(runs: Runs) -> None:
    runs.file(**ENDLESS)
    producer, recon = runs.start("producer"), runs.start("recon")
    runs.until(runs.streaming)
    runs.lab.run("scancel", recon)
    runs.ended(producer, recon)
    assert runs.outcome("recon")["code"] == 3, runs.log("recon")
    assert runs.outcome("producer")["code"] == 3, runs.log("producer")
    assert runs.volume()[0].any()


def test_the_walltime_signal_lets_the_window_finish(runs: Runs) -> None:
    run = runs.file(**ENDLESS)
    ran = runs.submit(run, "--ranks-per-node", "2", "--time", "1", "--signal-before", "25", "--wait")
    # at the end of its walltime Slurm would have killed it
    assert ran.returncode == 3, ran.stdout + ran.stderr + runs.log("recon")
    used = runs.summary()["projections"]["used"]
    assert used > 0
    assert f"{used} projections" in ran.stdout
    assert runs.volume()[0].any()


def test_a_dry_run_shows_both_submissions_and_makes_nothing(runs: Runs) -> None:
    words = ["--sbatch", "--account=tomo", "--advertise", "gateway.site"]
    ran = runs.submit(runs.file(**QUICK), "--recon-nodes", "2", *words, "--dry-run")
    assert ran.returncode == 0
    commands = [line for line in ran.stderr.splitlines() if line.startswith("sbatch ")]
    assert [("producer.sbatch" in line, "recon.sbatch" in line) for line in commands] == [(True, False), (False, True)]
    assert all("--account=tomo" in line for line in commands)
    assert ["--advertise gateway.site" in line for line in commands] == [True, False]
    assert not runs.out.exists()


def test_a_dry_run_finds_more_ranks_than_rows(runs: Runs) -> None:
    ran = runs.submit(runs.file(**QUICK), "--recon-nodes", "2", "--ranks-per-node", "4", "--dry-run")
    assert ran.returncode == 2
    assert f"8 ranks cannot share {ROWS} detector rows: start at most {ROWS} ranks" in ran.stderr


def test_more_ranks_than_tasks_run_on_the_cores_that_are_granted(runs: Runs) -> None:
    run = runs.file(**QUICK)
    ministream = Path(sys.executable).with_name("ministream")
    inside = [ministream, "launch", run, "--out", runs.out, "--ranks", "4", "--threads", "1"]
    ran = runs.lab.run("salloc", "-n1", f"-c{runs.lab.cpus}", *inside, timeout_s=HANG_S, **ENVIRONMENT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert runs.summary()["ranks"] == 4


def test_a_standing_job_takes_scan_after_scan(runs: Runs) -> None:
    run, address = runs.file(**QUICK), f"{runs.lab.host(2)}:{free_ports(1)}"
    ministream = Path(sys.executable).with_name("ministream")
    words = ["--out", runs.out, "--connect", f"tcp://{address}", "--scans", "2"]
    log = runs.out / "serve.log"
    runs.out.mkdir()
    options = ["--parsable", "--nodelist=n1", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={log}"]
    service = runs.lab.run("sbatch", *options, SLURM / "serve.sbatch", run, *words, **ENVIRONMENT).stdout.strip()
    produce = shlex.join(map(str, [ministream, "produce", run, "--listen", f"tcp://{address}", "--open-network"]))
    for _ in range(2):
        ran = runs.lab.run("sbatch", "--wait", "--nodelist=n2", "--output=/dev/null", "--wrap", produce)
        assert ran.returncode == 0, log.read_text()
    runs.ended(service)
    assert "2 scans: 2 complete" in log.read_text()
    assert sorted(path.parent.name for path in runs.out.glob("*/recon.h5")) == ["0001", "0002"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["no.toml"], "no such run file"),
        (["{run}", "--nodes", "2"], "unknown option"),
        (["{run}", "--time"], "needs a value"),
        (["{run}", "{run}"], "one run file"),
        (["{run}", "--producer", "gateway:5000"], "--credentials"),
        (["{run}", "--recon-nodes", "2", "--", "--scratch", "/local"], "--scratch is a disk of one node"),
        (["{run}", "--het", "--", "--scratch=/local"], "--scratch is a disk of one node"),
    ],
)
def test_a_wrong_command_line_is_refused(runs: Runs, words: list[str], problem: str) -> None:
    run = str(runs.file(**QUICK))
    ran = runs.lab.run(SLURM / "submit.sh", *(word.format(run=run) for word in words))
    assert ran.returncode == 2
    assert problem in ran.stderr
