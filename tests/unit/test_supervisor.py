"""A pair gets one outcome, whichever side fails, and whatever is asked meanwhile; with real processes as jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ministream.app.launch.processes import Child
from ministream.app.launch.rendezvous import Contact, JobSide, SharedFolder
from ministream.app.launch.supervisor import Actions, Supervisor, Timeouts
from ministream.errors import StorageError

# A job that announces where it listens, then does the rest; USR1 lets it finish with exit code 3.
JOB = """
{before}
trap 'echo "ministream: asked after 7 projections" >&2; exit 3' USR1
echo '{{"control": "localhost:{port}", "pid": '$$'}}' > {announcement}.part
mv {announcement}.part {announcement}
{rest}
"""
FOREVER = "while true; do sleep 0.05; done"


class Pair:
    """Supervisors of the two sides of one rendezvous."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisors: list[Supervisor] = []
        self.advertised = "localhost"

    def add(
        self,
        side: JobSide,
        rest: str,
        *,
        before: str = "",
        client: str = "exit 0",
        after: Callable[[], None] | None = None,
        restarts: int = 0,
        advertise: str | None = None,
        **timeouts: float,
    ) -> Supervisor:
        rendezvous = SharedFolder(self.folder, side)
        rendezvous.credentials("localhost")
        announcement = self.folder / f".{side}"
        script = JOB.format(port=1 if side == "producer" else 2, announcement=announcement, before=before, rest=rest)

        def connect(partner: Contact, control: str) -> Child:
            assert (partner.control, control) == (f"{self.advertised}:1", "localhost:2")
            return Child("client", ["sh", "-c", client])

        supervisor = Supervisor(
            side,
            rendezvous,
            Actions(
                start=lambda _again: Child(side, ["sh", "-c", script]),
                connect=connect if side == "recon" else None,
                after=after,
            ),
            job=f"the {side} job",
            announcement=announcement,
            timeouts=Timeouts(**{"partner_s": 5.0, "finish_s": 5.0} | timeouts),
            restarts=restarts,
            advertise=advertise,
        )
        self.supervisors.append(supervisor)
        return supervisor

    def run(self, seconds: float = 20) -> list[int]:
        """Step until every side has an outcome; their codes."""
        end = time.monotonic() + seconds
        while any(supervisor.outcome is None for supervisor in self.supervisors) and time.monotonic() < end:
            for supervisor in self.supervisors:
                supervisor.step()
            time.sleep(0.02)
        return [supervisor.outcome.code if supervisor.outcome else -1 for supervisor in self.supervisors]


@pytest.fixture
def pair(tmp_path: Path):
    pair = Pair(tmp_path / "pair")
    yield pair
    for supervisor in pair.supervisors:
        supervisor.__exit__()


def test_the_partner_is_given_the_advertised_host(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "pair")
    pair.advertised = "gateway.site"
    pair.add("producer", "sleep 0.2", advertise="gateway.site")
    pair.add("recon", "sleep 0.5")
    assert pair.run() == [0, 0]


def test_both_finish(pair: Pair) -> None:
    pair.add("producer", "sleep 0.8")
    pair.add("recon", "sleep 1")
    assert pair.run() == [0, 0]


def test_an_incomplete_reconstruction_decides(pair: Pair) -> None:
    pair.add("producer", FOREVER)
    recon = pair.add("recon", "sleep 0.8; echo 'ministream: 12 projections are missing' >&2; exit 3")
    assert pair.run() == [3, 3]
    assert recon.outcome is not None
    assert recon.outcome.reason == "the recon job is incomplete: 12 projections are missing"


def test_a_producer_that_fails_before_the_stream_gives_its_code_and_reason(pair: Pair) -> None:
    pair.add("producer", "", before="echo 'ministream: scan.h5: no such file' >&2; exit 2")
    recon = pair.add("recon", FOREVER)
    assert pair.run() == [2, 2]
    assert recon.outcome is not None
    assert "the producer job ended first" in recon.outcome.reason
    assert "scan.h5: no such file" in recon.outcome.reason


def test_a_producer_that_fails_midway_lets_the_reconstruction_finish(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ministream.app.launch.supervisor.PARTNER_OUTCOME_S", 1.0)
    pair.add("producer", "sleep 1.2; exit 4")
    recon = pair.add("recon", FOREVER)
    assert pair.run() == [4, 3]
    assert recon.outcome is not None
    assert "asked after 7 projections" in recon.outcome.reason


def test_a_reconstruction_that_fails_ends_the_producer(pair: Pair) -> None:
    producer = pair.add("producer", FOREVER)
    pair.add("recon", "sleep 0.8; echo 'ministream: out/recon.h5: disk full' >&2; exit 5")
    assert pair.run() == [5, 5]
    assert producer.outcome is not None
    assert "disk full" in producer.outcome.reason


def test_the_side_that_only_felt_the_failure_waits_for_the_others_account(pair: Pair) -> None:
    pair.add("producer", "sleep 1.2; echo 'ministream: the detector broke' >&2; exit 70")
    recon = pair.add("recon", "sleep 0.8; echo 'ministream: the producer is silent' >&2; exit 4")
    assert pair.run() == [4, 4]
    assert recon.outcome is not None
    assert "the detector broke" in recon.outcome.reason


@pytest.mark.parametrize(("side", "missing"), [("producer", "the reconstruction job"), ("recon", "the producer job")])
def test_a_partner_that_never_comes(pair: Pair, side: JobSide, missing: str) -> None:
    alone = pair.add(side, FOREVER, partner_s=1.0)
    assert pair.run() == [4]
    assert alone.outcome is not None
    assert f"timed out after 1 s waiting for {missing}" in alone.outcome.reason


def test_a_tunnel_that_cannot_be_opened_ends_both(pair: Pair) -> None:
    producer = pair.add("producer", FOREVER)
    pair.add("recon", FOREVER, client="echo 'ministream: refused' >&2; exit 4")
    assert pair.run() == [4, 4]
    assert producer.outcome is not None
    assert "cannot open the tunnel: refused" in producer.outcome.reason


def test_asked_to_stop_the_reconstruction_finishes(pair: Pair) -> None:
    pair.add("producer", FOREVER)
    recon = pair.add("recon", FOREVER)
    pair.run(0.8)
    recon.stop("SIGUSR1")
    assert pair.run() == [3, 3]


STOPPED_TWICE = "n=0; trap 'n=$((n + 1)); [ $n -lt 2 ] || exit 3' TERM; " + FOREVER


def test_a_producer_asked_to_stop_sends_what_it_has(pair: Pair) -> None:
    pair.add("recon", "sleep 3; exit 3")
    producer = pair.add("producer", f"trap 'sleep 0.5; echo \"ministream: 7 were sent\" >&2; exit 3' TERM; {FOREVER}")
    pair.run(0.8)
    producer.stop("SIGTERM")
    assert pair.run() == [3, 3]
    assert producer.outcome is not None
    assert producer.outcome.reason == "the producer job is incomplete: 7 were sent"


def test_a_producer_whose_partner_failed_is_told_twice(pair: Pair) -> None:
    """It would wait for a receiver after the first signal. The outcome is its partner's."""
    producer = pair.add("producer", STOPPED_TWICE)
    pair.add("recon", "sleep 0.8; echo 'ministream: out/recon.h5: disk full' >&2; exit 5")
    assert pair.run() == [5, 5]
    assert producer.outcome is not None
    assert "disk full" in producer.outcome.reason


def test_asked_to_stop_before_the_stream_nothing_is_finished(pair: Pair) -> None:
    recon = pair.add("recon", FOREVER)
    pair.run(0.3)
    recon.stop("SIGTERM")
    assert pair.run() == [3]
    assert recon.outcome is not None
    assert "was stopped by SIGTERM" in recon.outcome.reason


def test_one_that_does_not_finish_in_time_is_ended(pair: Pair) -> None:
    recon = pair.add("recon", f"trap '' USR1; {FOREVER}", finish_s=0.5)
    pair.add("producer", FOREVER)
    pair.run(0.8)
    recon.stop("SIGTERM")
    assert pair.run()[0] == 3


def test_asked_twice_everything_ends_at_once(pair: Pair) -> None:
    recon = pair.add("recon", f"trap '' USR1; {FOREVER}", finish_s=60)
    pair.add("producer", FOREVER)
    pair.run(0.8)
    recon.stop("SIGINT")
    recon.stop("SIGINT", at_once=True)
    started = time.monotonic()
    assert pair.run()[0] == 3
    assert time.monotonic() - started < 8


def test_results_that_cannot_be_copied_fail_the_pair(pair: Pair) -> None:
    def after() -> None:
        raise StorageError("results/recon.h5: disk full")

    pair.add("producer", "sleep 0.8")
    pair.add("recon", "sleep 0.8", after=after)
    assert pair.run() == [0, 5]


KILLED_ONCE = """
if [ -e {note} ]; then sleep 0.5; exit 0; fi
touch {note}
echo "mpirun noticed that process rank 1 with PID 0 on node n7 exited on signal 9 (Killed)." >&2
exit 137
"""


def test_a_crashed_reconstruction_is_restarted(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.folder.mkdir(mode=0o700)
    pair.add("producer", "sleep 1.5")
    recon = pair.add("recon", KILLED_ONCE.format(note=pair.folder / "note"), restarts=3)
    assert pair.run() == [0, 0]
    assert recon.outcome is not None
    assert recon.outcome.reason == "the recon job is complete"
    assert "the recon job crashed (rank 1 on n7: killed by SIGKILL): restart 1 of 3" in caplog.text


def test_restarts_are_counted(pair: Pair) -> None:
    crash = "echo 'rank 1 of 2 on n7 failed: defect' >&2; exit 70"
    recon = pair.add("recon", crash, restarts=2)
    assert pair.run() == [4]
    assert recon.outcome is not None
    assert recon.outcome.reason.endswith("exit code 70: rank 1 of 2 on n7 failed: defect")


def test_an_orderly_failure_is_not_restarted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ministream.app.launch.supervisor.PARTNER_OUTCOME_S", 0.0)
    started = pair.folder.with_name("started")
    pair.add("recon", f"echo . >> {started}; echo 'ministream: the producer is silent' >&2; exit 4", restarts=3)
    assert pair.run() == [4]
    assert started.read_text() == ".\n"


def test_the_code_that_the_job_tells_counts_not_that_of_mpirun(pair: Pair) -> None:
    pair.add("producer", FOREVER)
    tell = """printf '{"exit_code": 3}' > ANNOUNCEMENT.part; mv ANNOUNCEMENT.part ANNOUNCEMENT"""
    tell = tell.replace("ANNOUNCEMENT", str(pair.folder / ".recon"))
    recon = pair.add("recon", f"{tell}; echo 'ministream: the volume is incomplete: stopped' >&2; exit 138")
    assert pair.run() == [3, 3]
    assert recon.outcome is not None
    assert recon.outcome.reason == "the recon job is incomplete: the volume is incomplete: stopped"
