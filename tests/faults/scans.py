"""The scan of the tests of faults, as two jobs that a test starts, disturbs and looks at."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tests.faults.link import HOSTS, Link
from tests.integration.jobs import MINISTREAM, Job, Lab, alive

PROJECTIONS = 120
RATE = 15  # projections per second: a test disturbs the scan while it is under way
SCAN = ["source.rows=6", "source.cols=48", f"source.projections={PROJECTIONS}", "source.seed=3"]
# Frames on the way are few: however slow the ranks start, the scan is not over when the first image is there.
CREDIT = ["--set", "stream.credit_mib=0.01"]
WINDOW = ["--window-length", "40", "--window-step", "20", "--window-iter", "2", "--write-freq", "1"]


def volume(folder: Path) -> NDArray[np.float32]:
    """The final volume in a folder of results."""
    with h5py.File(folder / "recon.h5") as file:
        found: NDArray[np.float32] = file["data"][:]
    return found


def assert_close(found: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """A run that was resumed rounds differently."""
    assert np.linalg.norm(found - right) <= 1e-5 * np.linalg.norm(right)


class Pair:
    """Both jobs; with a `link` each on its host."""

    producer: Job
    recon: Job

    def __init__(self, jobs: Lab, link: Link | None = None, *, mpirun: tuple[str, ...] = ()) -> None:
        self.jobs, self._link, self._mpirun = jobs, link, mpirun

    def directly(self, *, through: Any = None, recon: tuple[str, ...] = ()) -> Pair:
        """Join them without a tunnel; `through` makes of the producer's address the one that is connected to."""
        self.produce("--open-network", "--listen", f"tcp://{self._host('producer')}:0")
        address = self.jobs.announced("producer", self.producer)["data"]
        return self.reconstruct("--connect", through(address) if through else address, *recon)

    def tunnelled(self, credentials: list[str], *, produce: tuple[str, ...] = (), recon: tuple[str, ...] = ()) -> Pair:
        """Join them by way of both gateways and their relays, over TLS."""
        gateway = self._host("producer")
        where = ["--control", f"{gateway}:0", "--set", f"tunnel.data_host={gateway}"]
        self.produce(*where, *credentials, *produce)
        control = self.jobs.announced("producer", self.producer)["control"]
        return self.reconstruct("--producer", control, *credentials, *recon)

    def until_streaming(self) -> Pair:
        """Return when the first image is written: the scan is under way."""
        self.recon.until(lambda: list(self.jobs.out.glob("0*-recon.h5")))
        return self

    def assert_complete(self) -> None:
        """Both jobs end well, and every projection was used once."""
        assert (self.producer.wait(), self.recon.wait()) == (0, 0), self.text
        summary = self.jobs.summary()
        assert summary["complete"], self.text
        counts = summary["projections"]
        assert (counts["sent"], counts["received"], counts["used"]) == (PROJECTIONS,) * 3
        assert (counts["refused"], counts["dropped"]) == (0, 0)

    @property
    def text(self) -> str:
        """What both have printed."""
        return f"--- producer\n{self.producer.text}\n--- reconstruction\n{self.recon.text}"

    def _host(self, name: str) -> str:
        return HOSTS[name] if self._link else "127.0.0.1"

    def _on(self, host: str, command: list[str]) -> list[str]:
        return self._link.on(host, command) if self._link else command

    def produce(self, *words: str) -> None:
        """Start a producer of the scan."""
        scan = [word for setting in SCAN for word in ("--set", setting)]
        announce = ["--announce", str(self.jobs.folder / "producer.json")]
        command = [*MINISTREAM, "produce", *scan, "--rate", str(RATE), *words, *announce]
        self.producer = self.jobs.start("producer", self._on("producer", command))

    def reconstruct(self, *words: str) -> Pair:
        """Start a reconstruction of two ranks."""
        command = [
            "mpirun",
            *self._mpirun,
            "-n",
            "2",
            *MINISTREAM,
            "recon",
            *words,
            *WINDOW,
            *CREDIT,
            "--out",
            str(self.jobs.out),
        ]
        command += ["--set", "output.pictures=false", "--ranks", "2"]
        self.recon = self.jobs.start("recon", self._on("consumer", command))
        return self


def processes_of(job: Job, word: str) -> list[int]:
    """Pids of the processes of a job whose command line has a word: `relay_worker`, `recon`, …"""
    found = []
    for pid in alive(job.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.encode() in one for one in words) and not words[0].endswith(b"mpirun"):
            found.append(pid)
    return sorted(found)


def rank_of(job: Job, rank: int) -> int:
    """The pid of a rank."""
    needle = b"OMPI_COMM_WORLD_RANK=%d" % rank
    pids = processes_of(job, "recon")
    return next(pid for pid in pids if needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that stand still for the length of a block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def last(seconds: float) -> None:
    """The fault lasts so long; nothing is to happen meanwhile."""
    time.sleep(seconds)
