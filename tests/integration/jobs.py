"""The two jobs as a user starts them: by command line, in process trees of their own, joined by the network alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import HANG_S, eventually

MINISTREAM = [str(Path(sys.executable).with_name("ministream"))]

MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


class Job:
    """One process tree, started in a session of its own; its output goes to a file."""

    def __init__(self, command: list[str], log: Path, temporary: Path) -> None:
        self.log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMIX", "PMI_"))}
        # what is killed leaves files and shared memory behind: let them be in the test's own folder
        left_behind = {"TMPDIR": str(temporary), "OMPI_MCA_btl_vader_backing_directory": str(temporary)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment | MPI_ENVIRONMENT | left_behind,
            )

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = HANG_S) -> int:
        """The exit code; a job that hangs fails the test with its output."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args} did not end in {timeout_s} s:\n{self.text}") from None

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition that the job brings about; fails with its output, at once when the job has ended."""
        eventually(lambda: condition() or self.process.poll() is not None, lambda: self.text)
        assert condition(), f"{self.process.args} ended before:\n{self.text}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job's first process."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """End the whole process group, whatever its state."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not alive(self.process.pid):
                break
            os.killpg(self.process.pid, number)
            with contextlib.suppress(AssertionError):
                eventually(self._is_gone, limit_s=5)
        self.process.wait()

    def _is_gone(self) -> bool:
        self.process.poll()  # a zombie is no process any more
        return not alive(self.process.pid)


def alive(session: int) -> list[int]:
    """Pids of the processes that belong to a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


class Lab:
    """Starts jobs in a folder and ends all of them when the test is over; their temporary files go to `temporary`."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary = folder, temporary
        self.out = folder / "out"
        self.jobs: list[Job] = []

    def start(self, name: str, command: list[str]) -> Job:
        """Start a command; its output is kept in `name`.log."""
        job = Job(command, self.folder / f"{name}.log", self.temporary)
        self.jobs.append(job)
        return job

    def produce(self, *arguments: str) -> Job:
        """`ministream produce …`, announcing its addresses in producer.json."""
        announce = ["--announce", str(self.folder / "producer.json")]
        return self.start("producer", [*MINISTREAM, "produce", *arguments, *announce])

    def recon(self, ranks: int, *arguments: str, pictures: bool = False) -> Job:
        """`mpirun -n RANKS ministream recon …` into the folder `out`, announcing its addresses in recon.json.

        Pictures take longer than all else in a small job, so they are for the tests that look at them.
        """
        command = [*MINISTREAM, "recon", *arguments, "--out", str(self.out)]
        command += ["--set", f"output.pictures={str(pictures).lower()}"]
        command += ["--announce", str(self.folder / "recon.json"), "--ranks", str(ranks)]
        return self.start("recon", ["mpirun", "-n", str(ranks), *command] if ranks > 1 else command)

    def announced(self, name: str, job: Job) -> dict[str, str]:
        """The addresses that a job announces, once it listens."""
        path = self.folder / f"{name}.json"
        job.until(path.exists)
        return json.loads(path.read_text())

    def summary(self) -> dict:
        """The reconstruction job's summary.json."""
        return json.loads((self.out / "summary.json").read_text())


@contextmanager
def lab(folder: Path):
    """A Lab whose process trees are gone afterwards; a stray process is an error."""
    # a short name: sockets lie there
    with tempfile.TemporaryDirectory(prefix="lab-") as temporary:
        lab = Lab(folder, Path(temporary))
        try:
            yield lab
            for job in lab.jobs:
                job.wait()
            strays = {job.log.stem: pids for job in lab.jobs if (pids := _lingering(job))}
            assert not strays, f"processes outlived their jobs: {strays}"
        finally:
            for job in lab.jobs:
                job.stop()


def _lingering(job: Job) -> list[int]:
    with contextlib.suppress(AssertionError):
        eventually(lambda: not alive(job.process.pid), limit_s=10)
    return alive(job.process.pid)
