"""A reconstruction that was stopped or killed continues from its checkpoint, with any number of ranks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ministream.errors import PeerError
from ministream.model import Frame, FrameKind, Scan
from ministream.storage import checkpoints, read_volume
from ministream.transport.native import FrameSender
from tests.integration.jobs import Lab, alive, lab

SCAN = Scan(scan_id="walnut-7", rows=6, cols=32, projections=40, flats=2, darks=1, dtype="<u2")
WINDOW = ["--window-length", "20", "--window-step", "10", "--window-iter", "3", "--write-freq", "1"]
QUICK = ["--threads", "1", "--set", "output.pictures=false"]
EVERY_UPDATE = ["--set", "checkpoint.every_updates=1"]
PAUSE_AT = 27  # projections: two updates, and seven that wait for the third


def frames() -> Iterator[Frame]:
    rng = np.random.default_rng(9)
    for kind, count, level in (
        (FrameKind.DARK, 1, 20),
        (FrameKind.FLAT, 2, 2000),
        (FrameKind.PROJECTION, 40, 900),
    ):
        for index in range(count):
            pixels = (level + rng.integers(0, level // 2, (SCAN.rows, SCAN.cols))).astype("<u2")
            yield Frame(kind=kind, index=index, angle_rad=index * np.pi / 40, pixels=pixels, acquired_s=1e9 + index)


@contextmanager
def producing(pause_at: int | None = None) -> Iterator[str]:
    """Sends the scan from a thread, or as much of it and no end."""
    with FrameSender("tcp://127.0.0.1:0", SCAN) as sender:

        def send() -> None:
            try:
                for frame in frames():
                    if pause_at is not None and frame.kind is FrameKind.PROJECTION and frame.index == pause_at:
                        return
                    sender.send(frame)
                sender.finish()
            except PeerError:
                assert pause_at is not None

        thread = threading.Thread(target=send)
        thread.start()
        yield sender.address
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> np.ndarray:
    """The volume of a run that nothing happens to."""
    with lab(tmp_path_factory.mktemp("undisturbed")) as jobs, producing() as address:
        job = jobs.recon(1, "--connect", address, *WINDOW, *QUICK, *EVERY_UPDATE)
        assert job.wait() == 0, job.text
        assert not (jobs.out / "checkpoint").exists(), "a complete run needs none"
        return read_volume(jobs.out / "recon.h5")


def interrupted(jobs: Lab, ranks: int, *options: str) -> None:
    """Run until the first part of the scan has arrived, then stop or kill it."""
    with producing(pause_at=PAUSE_AT) as address:
        job = jobs.recon(ranks, "--connect", address, *WINDOW, *QUICK, *options)
        job.until((jobs.out / "000002-recon.h5").exists)
        if options:
            job.until(lambda: len(checkpoints(jobs.out / "checkpoint")) == 2)
            for pid in alive(job.process.pid):
                os.kill(pid, signal.SIGKILL)
            assert job.wait() != 0
        else:
            for pid in alive(job.process.pid):
                if b"ministream" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGUSR1)
            assert job.wait() == 3, job.text
            assert "continue with `ministream recon --resume" in job.text
            assert read_volume(jobs.out / "recon.h5").shape == (6, 32, 32)


def resumed(jobs: Lab, ranks: int) -> np.ndarray:
    with producing() as address:
        job = jobs.recon(ranks, "--connect", address, "--resume", str(jobs.out / "checkpoint"), *QUICK)
        assert job.wait() == 0, job.text
    assert "resumed from" in job.text
    summary = jobs.summary()
    assert summary["complete"]
    assert summary["missing"] == []
    counts = summary["projections"]
    assert {counts[name] for name in ("sent", "received", "used", "imaged", "written")} == {40}
    assert summary["updates"] == 4
    assert not (jobs.out / "checkpoint").exists()
    return read_volume(jobs.out / "recon.h5")


def assert_close(volume: np.ndarray, right: np.ndarray) -> None:
    assert np.linalg.norm(volume - right) <= 1e-5 * np.linalg.norm(right)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_a_stopped_run_continues_with_other_ranks(jobs, undisturbed, before, after):
    interrupted(jobs, before)
    assert_close(resumed(jobs, after), undisturbed)


def test_a_killed_run_continues_from_its_last_checkpoint(jobs, undisturbed):
    interrupted(jobs, 2, *EVERY_UPDATE)
    assert_close(resumed(jobs, 1), undisturbed)


def test_a_checkpoint_of_another_scan_is_refused(jobs):
    interrupted(jobs, 1)
    producer = jobs.produce("--set", "source.rows=6", "--set", "source.cols=32", "--set", "source.projections=40")
    address = jobs.announced("producer", producer)["data"]
    job = jobs.recon(1, "--connect", address, "--resume", str(jobs.out / "checkpoint"))
    assert job.wait() == 4
    assert "scan 'walnut-7' was requested" in job.text
    producer.signal(signal.SIGTERM)
