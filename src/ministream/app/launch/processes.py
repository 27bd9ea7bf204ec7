"""Child processes that a launcher starts, watches, signals, and never leaves behind."""

from __future__ import annotations

import os
import re
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
from ministream.errors import MachineError

_LOG = log.get(__name__)

# How this package says on standard error why it failed, the surest word first: the command line's, a rank's.
_WORDS = (re.compile(r"^ministream: (.+)$"), re.compile(r"(rank \d+ of \d+ failed, .+)$"), re.compile(r"(.*\S.*)$"))

POLL_S = 0.05
KILL_AFTER_S = 5.0
LISTEN_S = 1.0


class Child:
    """A program in a session of its own; ends with this process, whatever ends this process.

    Raises MachineError when the program cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._explanation = ""
        if shutil.which(command[0]) is None:
            raise MachineError(f"{name}: no program {command[0]}")
        listen = not sys.stderr.isatty()
        try:
            # By exec only: a fork would copy the threads' locks of whatever library is loaded here.
            self._process = subprocess.Popen(
                [*_ends_with_parent(), *command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE if listen else None,
                start_new_session=True,
            )
        except OSError as error:
            raise MachineError(f"{name}: {command[0]} cannot be started: {error.strerror}") from error
        self._listener = self._listen(self._process.stderr) if self._process.stderr else None

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
        """After its end: the line in which it said why it failed, or the last one it said.

        Empty where standard error is a terminal, to which the child writes directly.
        """
        if self._listener is not None:
            self._listener.join(LISTEN_S)
        return self._explanation

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
        """End it: ask, wait, then insist; and every process that it left in its session. Returns its exit code."""
        if self.code is None:
            self.signal(signal.SIGTERM)
            if self.wait(grace_s) is None:
                _LOG.warning("%s did not end within %.0f s and is killed", self.name, grace_s)
                self.signal(signal.SIGKILL)
        self._process.wait()
        for pid in session_members(self._process.pid):
            _LOG.warning("%s left process %d behind, which is killed", self.name, pid)
            _kill(pid)
        code = self.code
        assert code is not None
        return code

    def _listen(self, pipe: IO[bytes]) -> threading.Thread:
        listener = threading.Thread(target=self._pass_on, args=(pipe,), name=f"stderr of {self.name}", daemon=True)
        listener.start()
        return listener

    def _pass_on(self, pipe: IO[bytes]) -> None:
        surest = len(_WORDS)
        with pipe:
            for line in pipe:
                sys.stderr.write(text := line.decode(errors="replace"))
                sys.stderr.flush()
                for how_sure, word in enumerate(_WORDS[: surest + 1]):
                    if found := word.search(text.rstrip()):
                        self._explanation, surest = found[1], how_sure
                        break


def session_members(session: int) -> list[int]:
    """The processes of a session, by what the kernel lists; the dead and unreaped are not counted."""
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


def _ends_with_parent() -> list[str]:
    """Words before a command that let it be terminated when this process dies, even by SIGKILL."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
