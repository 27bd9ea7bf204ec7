"""Signals: the first takes what has arrived and ends in order, the second ends at once; also while starting."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.faults.scans import PROJECTIONS, Pair, volume
from tests.integration.jobs import Lab

long = pytest.mark.long


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=long)])
def test_the_producers_first_signal_ends_the_stream_in_order(
    jobs: Lab, credentials: list[str], number: signal.Signals
) -> None:
    pair = Pair(jobs).tunnelled(credentials).until_streaming()
    pair.producer.signal(number)
    assert (pair.producer.wait(), pair.recon.wait()) == (3, 3), pair.text
    summary = jobs.summary()
    counts = summary["projections"]
    assert 0 < counts["sent"] < PROJECTIONS
    assert counts["sent"] == counts["received"] == counts["used"] == counts["written"]
    assert counts["sent"] + counts["dropped"] == PROJECTIONS
    left_out = [index for each in summary["dropped"] for index in each["indices"]]
    assert left_out == list(range(counts["sent"], PROJECTIONS))
    assert {each["reason"] for each in summary["dropped"]} == {"stopped"}
    stopped = f"stopped by {number.name}: {counts['sent']} of {PROJECTIONS} projections were sent"
    assert stopped in pair.producer.text.splitlines()[-1]
    assert volume(jobs.out).any()


def test_a_producer_without_a_receiver_ends_at_the_first_signal(jobs: Lab) -> None:
    pair = Pair(jobs)
    pair.produce()
    jobs.announced("producer", pair.producer)
    pair.producer.signal(signal.SIGINT)
    assert pair.producer.wait() == 3
    assert "stopped by SIGINT before anything was sent" in pair.producer.text.splitlines()[-1]


# Open MPI's mpirun passes USR1 on at once. INT and TERM reach the ranks after this time, and after it once more mpirun
# kills them; by default one second.
PATIENT = ("--mca", "odls_base_sigkill_timeout", "8")


@long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_patient_mpirun_lets_the_ranks_write(jobs: Lab, number: signal.Signals) -> None:
    pair = Pair(jobs, mpirun=PATIENT)
    pair.produce("--set", "source.projections=1000")
    pair.reconstruct("--connect", jobs.announced("producer", pair.producer)["data"]).until_streaming()
    pair.recon.signal(number)
    assert pair.recon.wait() != 0
    assert "stopped by SIGTERM" in jobs.summary()["ending"], pair.text
    assert volume(jobs.out).any()
    assert pair.producer.wait() == 4


def test_a_signal_to_mpirun_while_starting_ends_the_job(jobs: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair = Pair(jobs)
        pair.reconstruct("--connect", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        silent.accept()[0].close()  # it has started to connect
        pair.recon.signal(signal.SIGTERM)
        assert pair.recon.wait(30) != 0
    assert "Traceback" not in pair.recon.text
