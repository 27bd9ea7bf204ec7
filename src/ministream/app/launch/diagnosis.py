"""Reads what a job prints on standard error: keeps the line that names the cause, drops MPI's banners.

Lines in, lines out, no process: `Diagnosis.read` returns the line as the user should see it.
"""

from __future__ import annotations

import enum
import re
import signal

from ministream import log


class Certainty(enum.IntEnum):
    """How surely a line names the cause of a failure."""

    NONE = 0
    FRAME = 1  # mpirun's first sentence between rulers, where no process said anything
    LAST_LINE = 2
    LAUNCHER = 3  # mpirun or srun: which process died, and how
    RANK = 4  # a rank that failed alone
    COMMAND = 5  # the command's own error line, after an orderly end


_RULER = re.compile(r"^[-=]{30,}\s*$")
_COMMAND = re.compile(r"^ministream: (?P<cause>.+)$")
_RANK = re.compile(r"(?P<cause>rank \d+ of \d+( on \S+)? failed\b.+)$")
# Open MPI, Hydra (MPICH, Intel MPI) and Slurm, one line each: a rank, a host, a signal or an exit code
_LAUNCHERS = (
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on signal (?P<signal>\d+)"),
    re.compile(r"^srun: error: (?P<host>[^:]+): task (?P<rank>\d+): (?P<how>.+)$"),
)
_HYDRA_PLACE = re.compile(r"PID \d+ RUNNING AT (?P<host>\S+)")
_HYDRA_CODE = re.compile(r"^=\s+EXIT CODE: (?P<code>\d+)")
# mpirun's follow-up lines outside its banner
_NOISE = re.compile(r"^(mpirun |\[\S+:\d+\] |MPI_ABORT was invoked|with errorcode|srun: (Job step|Terminating))")


class Diagnosis:
    """The cause of a job's end, as its standard error tells it."""

    def __init__(self) -> None:
        self.cause = ""
        self.certainty = Certainty.NONE
        self._framed = False
        self._sentence: list[str] | None = None
        self._host = ""

    def read(self, line: str) -> str | None:
        """Read one line; returns it for the user, None for lines that only a launcher needs."""
        text = _plain(line.rstrip())
        if _RULER.match(text):
            self._framed = not self._framed
            self._sentence = [] if self._framed else None
            return None
        if self._launcher(text) or _NOISE.match(text):
            return None
        if self._framed:
            self._in_frame(text.strip())
            return None
        if found := _COMMAND.match(text):
            self._note(found["cause"], Certainty.COMMAND)
        elif found := _RANK.search(text):
            self._note(found["cause"], Certainty.RANK)
        elif text.strip():
            self._note(text.strip(), Certainty.LAST_LINE)
        return line

    def _in_frame(self, text: str) -> None:
        """Collect the first paragraph of a frame."""
        if self._sentence is not None and text:
            self._sentence.append(text)
        elif self._sentence:
            cause = " ".join(self._sentence).rstrip(":.")
            slots = " (in a batch job ask for as many tasks: --ntasks)" if "slots" in cause else ""
            self._note(cause + slots, Certainty.FRAME)
            self._sentence = None

    def _note(self, cause: str, certainty: Certainty) -> None:
        """The first of several processes that failed is the cause; of other lines the last."""
        first_counts = certainty in {Certainty.FRAME, Certainty.LAUNCHER, Certainty.RANK}
        if certainty > self.certainty or (certainty == self.certainty and not first_counts):
            self.cause, self.certainty = cause, certainty

    def _launcher(self, text: str) -> bool:
        for known in _LAUNCHERS:
            if found := known.search(text):
                how = found.groupdict().get("how") or killed_by(int(found["signal"]))
                self._note(f"rank {found['rank']} on {found['host']}: {how}", Certainty.LAUNCHER)
                return True
        if found := _HYDRA_PLACE.search(text):
            self._host = found["host"]
        elif (found := _HYDRA_CODE.match(text)) and self._host:
            code = int(found["code"])
            how = killed_by(code) if code in _SIGNALS else f"exit code {code}"
            self._note(f"a rank on {self._host}: {how}", Certainty.LAUNCHER)
        return bool(text.startswith("=   "))


def _plain(text: str) -> str:
    """An event of a JSON log as the line that people get."""
    event = log.event_of(text)
    if event is None:
        return text
    return f"ministream: {event['message']}" if event["logger"] == log.COMMAND else event["message"]


_SIGNALS = frozenset(int(number) for number in signal.Signals)


def killed_by(number: int) -> str:
    """A signal in words."""
    name = signal.Signals(number).name if number in _SIGNALS else str(number)
    return f"killed by {name}"
