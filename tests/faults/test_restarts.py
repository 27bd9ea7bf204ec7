"""A producer that is killed and started again: the scan goes on where its receiver stands."""

from __future__ import annotations

import os
import signal

import numpy as np
from numpy.typing import NDArray

from tests.faults.scans import Pair, volume
from tests.integration.jobs import Lab


def killed_producer(jobs: Lab, *options: str) -> tuple[Pair, str]:
    """A pair of jobs whose producer was killed while it streamed, and the address at which it listened."""
    pair = Pair(jobs)
    pair.produce(*options)
    address = jobs.announced("producer", pair.producer)["data"]
    pair.reconstruct("--connect", address)
    pair.until_streaming()
    os.kill(pair.producer.process.pid, signal.SIGKILL)
    assert pair.producer.wait() == -signal.SIGKILL
    return pair, address


def test_the_same_source_serves_the_same_scan(jobs: Lab, undisturbed: NDArray[np.float32]) -> None:
    pair, address = killed_producer(jobs)
    pair.produce("--listen", address)
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)


def test_an_archive_is_sent_as_the_same_scan_and_what_was_never_acquired_is_said(jobs: Lab) -> None:
    archive = jobs.folder / "raw.h5"
    # The archive does not wait for the receiver: the scan is so long that it is not over before the first image.
    pair, address = killed_producer(jobs, "--archive", str(archive), "--set", "source.projections=100000")
    pair.produce("--listen", address, "--resume", str(archive), "--rate", "1000")
    assert (pair.producer.wait(), pair.recon.wait()) == (3, 3), pair.text
    assert not jobs.summary()["complete"]
