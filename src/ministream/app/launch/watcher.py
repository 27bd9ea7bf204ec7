"""Cleans up after a launcher that was killed: ends every process that it started, and removes its secrets.

The watcher is a process in a separate session. It follows the launcher through its standard input: a line with what
to clean up, then nothing. `done` means that the launcher cleaned up by itself; the end of the input without it
means that the launcher was killed or crashed.

Processes are found by a mark in the environment that every child of the launcher inherits, so no process
is missed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ministream.app.launch.rendezvous import JobSide

MARK = "MINISTREAM_LAUNCH"

# Grace period between the request to end and the kill; the whole clean-up takes at most 10 s.
GRACE_S = 4.0
POLL_S = 0.05

_DONE = "done\n"


class Watcher:
    """Started before the first child; `environment` marks the children. Leave it only after they have ended."""

    def __init__(self, private: Path) -> None:
        self.environment = {MARK: secrets.token_hex(16)}
        self._private = private
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._pairs: list[tuple[str, JobSide]] = []

    def __enter__(self) -> Self:
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._send(_DONE)
        self._process.communicate()

    def answer_for(self, folder: Path, side: JobSide) -> None:
        """If the launcher dies: write an outcome for the partner in `folder`, and remove the pair's secrets."""
        self._pairs.append((str(folder), side))
        self._tell()

    def _tell(self) -> None:
        known = {"mark": self.environment[MARK], "private": str(self._private), "pairs": self._pairs}
        self._send(json.dumps(known) + "\n")

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text)
            self._process.stdin.flush()
        except BrokenPipeError:  # killed by somebody: the children still end with the launcher's own cleaning
            return


def main() -> None:
    """Wait for the launcher's end; clean up unless it did."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    known: Mapping[str, Any] = {}
    for line in sys.stdin:
        if line == _DONE:
            return
        known = json.loads(line)
    if known:
        _clean(known["mark"], Path(known["private"]), known["pairs"])


def _clean(mark: str, private: Path, pairs: list[tuple[str, JobSide]]) -> None:
    end_marked(mark)
    for folder, side in pairs:
        if not (Path(folder) / f"{side}.end").exists():
            _close_pair(Path(folder), side)
    shutil.rmtree(private, ignore_errors=True)


def end_marked(mark: str) -> None:
    """End all processes that carry the mark: ask them, wait, then kill, until none is left."""
    for pid in marked(mark):
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while left := marked(mark):
        if time.monotonic() > deadline:
            for pid in left:
                _signal(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def marked(mark: str) -> list[int]:
    """The processes of this user that were started with the mark in their environment and have not ended."""
    needle = f"{MARK}={mark}".encode()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _carries(entry, needle)]


def _carries(process: Path, needle: bytes) -> bool:
    try:
        # the environment of a process that has ended and is not yet reaped is empty
        return needle in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _close_pair(folder: Path, side: JobSide) -> None:
    # imported here: a watcher that has nothing to do stays small
    from ministream.app.launch.rendezvous import Outcome, SharedFolder
    from ministream.errors import ExitCode, MinistreamError

    try:
        SharedFolder(folder, side).finish(Outcome(code=ExitCode.PEER, reason="its launcher was killed"))
    except MinistreamError as error:
        sys.stderr.write(f"ministream: {error}\n")


if __name__ == "__main__":
    main()
