"""Child processes that a launcher starts, watches, signals, and never leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from ministream import log
from ministream.app.launch.diagnosis import Certainty, Diagnosis, killed_by
from ministream.errors import MachineError

_LOG = log.get(__name__)

POLL_S = 0.05
KILL_AFTER_S = 5.0
LISTEN_S = 1.0


class Child:
    """A program in a separate session, whose standard error is read and forwarded.

    Raises MachineError when the program cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._diagnosis = Diagnosis()
        if shutil.which(command[0]) is None:
            raise MachineError(f"{name}: no program {command[0]}")
        try:
            # By exec only: a fork would copy locks held by threads of any library loaded here.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise MachineError(f"{name}: cannot start {command[0]}: {error.strerror}") from error
        assert self._process.stderr is not None
        self._listener = self._listen(self._process.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(KILL_AFTER_S)

    @property
    def code(self) -> int | None:
        """Its exit code, 128 + n where signal n ended it; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def explanation(self) -> str:
        """After its end: the line that names the cause of its failure, else the last one."""
        self._listener.join(LISTEN_S)
        if not self._diagnosis.cause and (code := self._process.returncode) is not None and code < 0:
            return killed_by(-code)
        return self._diagnosis.cause

    @property
    def crashed(self) -> bool:
        """After its end: whether one of its processes died, instead of an orderly end with an error line."""
        self._listener.join(LISTEN_S)
        by_signal = self._process.returncode is not None and self._process.returncode < 0
        return by_signal or self._diagnosis.certainty in {Certainty.LAUNCHER, Certainty.RANK}

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        self._process.send_signal(number)

    def wait(self, limit_s: float) -> int | None:
        """Its exit code, as soon as it has one, None after the limit."""
        end = time.monotonic() + limit_s
        while self.code is None and time.monotonic() < end:
            time.sleep(POLL_S)
        return self.code

    def end(self, grace_s: float) -> int:
        """End it and all processes of its session: SIGTERM, after `grace_s` SIGKILL. Returns its exit code."""
        if self.code is None:
            self.signal(signal.SIGTERM)
            if self.wait(grace_s) is None:
                _LOG.warning("%s did not end within %.0f s: killing it", self.name, grace_s)
                self.signal(signal.SIGKILL)
        self._process.wait()
        for pid in session_members(self._process.pid):
            _LOG.debug("%s left process %d behind: killing it", self.name, pid)
            _kill(pid)
        code = self.code
        assert code is not None
        return code

    def _listen(self, pipe: IO[bytes]) -> threading.Thread:
        listener = threading.Thread(target=self._pass_on, args=(pipe,), name=f"stderr of {self.name}", daemon=True)
        listener.start()
        return listener

    def _pass_on(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace")
                shown = self._diagnosis.read(text)
                if shown is None:
                    _LOG.debug("%s: %s", self.name, text.rstrip())
                elif log.is_structured() and log.event_of(text) is None:
                    _LOG.info("%s: %s", self.name, text.rstrip())
                else:
                    sys.stderr.write(shown)
                    sys.stderr.flush()


def session_members(session: int) -> list[int]:
    """The processes of a session, without zombies."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _session_of(pid) == session]


def _session_of(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, a name in brackets, may hold anything.
    state, _parent, _group, session = status.rpartition(")")[2].split()[:4]
    return None if state in "ZX" else int(session)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        _LOG.debug("process %d has ended by itself", pid)
