"""The two jobs as processes that stay: each runs many commands, so that imports and compiled kernels serve all of them.

Every command goes through the command line's own entry: options, log, errors and exit codes are those of a user.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tests.integration.jobs import MPI_ENVIRONMENT
from tests.waiting import HANG_S, eventually

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of a scan: the jobs' exit codes (None: not started), everything they said, and the results' folder."""

    producer: int | None
    recon: int | None
    text: str
    out: Path

    @property
    def refused(self) -> bool:
        """Whether one of the jobs ended as for a wrong use, without a volume."""
        return 2 in (self.producer, self.recon) and not (self.out / "recon.h5").exists()

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text())

    @property
    def codes(self) -> list[str]:
        """The codes of the warnings."""
        return [warning["code"] for warning in self.summary["warnings"]]

    @property
    def volume(self) -> NDArray[np.float32]:
        """[slice, row, col]."""
        with h5py.File(self.out / "recon.h5") as file:
            volume: NDArray[np.float32] = file["data"][:]
        return volume


class WarmJob:
    """A process that runs one command of `ministream` after the other."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.warm_jobs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | MPI_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])},
        )

    def start(self, words: Sequence[str], log: Path) -> None:
        """Run a command, with its output in `log`."""
        assert self._process.stdin is not None
        print(json.dumps({"words": list(words), "log": str(log)}), file=self._process.stdin, flush=True)

    def wait(self) -> int:
        """The exit code of the command."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process, even one that hangs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(HANG_S)
        finally:
            self._process.kill()
            self._process.__exit__(None, None, None)


class WarmPair:
    """A producer job and a reconstruction job on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs = folder, 0
        self._producer, self._recon = WarmJob(folder), WarmJob(folder)

    def run(self, produce: Sequence[str], recon: Sequence[str] = ()) -> Ran:
        """`ministream produce …` and, once it listens, `ministream recon …`, to the end of both."""
        folder = self._new_folder()
        announced, out = folder / "producer.json", folder / "out"
        logs = [folder / "producer.log", folder / "recon.log"]
        listen = ["--listen", "tcp://127.0.0.1:0", "--announce", str(announced)]
        self._producer.start(["produce", *produce, *listen], logs[0])
        eventually(lambda: announced.exists() or ended(logs[0]), logs[0].read_text)
        code = None
        if announced.exists():
            address = json.loads(announced.read_text())["data"]
            code = self._reconstruct(["--connect", address, *recon], folder)
        text = "".join(log.read_text() for log in logs if log.exists())
        return Ran(producer=self._producer.wait(), recon=code, text=text, out=out)

    def receive(self, recon: Sequence[str]) -> Ran:
        """`ministream recon …` alone: the test is the producer."""
        folder = self._new_folder()
        code = self._reconstruct(recon, folder)
        return Ran(producer=None, recon=code, text=(folder / "recon.log").read_text(), out=folder / "out")

    def _reconstruct(self, words: Sequence[str], folder: Path) -> int:
        quick = ["--set", "output.pictures=false", "--out", str(folder / "out")]
        self._recon.start(["recon", *words, *quick], folder / "recon.log")
        return self._recon.wait()

    def _new_folder(self) -> Path:
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        return folder

    def check(self, words: Sequence[str]) -> tuple[int, str]:
        """`ministream check …`: its exit code and what it printed."""
        self._runs += 1
        log = self._folder / f"{self._runs}.log"
        self._recon.start(["check", *words], log)
        return self._recon.wait(), log.read_text()

    def close(self) -> None:
        """End both processes."""
        self._producer.close()
        self._recon.close()


@contextmanager
def warm_pair(folder: Path) -> Iterator[WarmPair]:
    """A pair whose processes work in `folder` and are gone afterwards."""
    pair = WarmPair(folder)
    with contextlib.closing(pair):
        yield pair


def ended(log: Path) -> bool:
    """Whether the command of this log is over."""
    return log.with_suffix(".ended").exists()


def main() -> None:
    """Run the commands on standard input; answer each with its exit code."""
    from ministream.cli import main as ministream

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        command = json.loads(line)
        log = Path(command["log"])
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.argv = ["ministream", *command["words"]]
        code = 0
        try:
            ministream()
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        log.with_suffix(".ended").touch()
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    main()
