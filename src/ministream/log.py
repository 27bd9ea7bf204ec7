"""One log for one job on standard error, never a secret: lines for people, or one JSON object per line."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

COMMAND = "ministream.command"
"""The logger of a command's own last line, in JSON."""
FORMAT = "%(asctime)s %(levelname).1s {who} %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object per event: `time` (ISO 8601, UTC), `level`, `process`, `rank` of a rank, `logger`, `message`.

    `error` is a traceback, where there is one.
    """

    def __init__(self, who: str, rank: int | None) -> None:
        super().__init__()
        self._process: dict[str, Any] = {"process": who} if rank is None else {"process": who, "rank": rank}

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told = {"time": at.isoformat(timespec="milliseconds"), "level": record.levelname, **self._process}
        told |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def setup(who: str, level: str = "INFO", form: str = "text", *, rank: int | None = None) -> None:
    """Send the package's log to standard error; `who` names the process (`producer`, `rank 3`, `s2cs`).

    `form` is text or json. In JSON, warnings of Python and of libraries are events too.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonLines(who, rank))
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").handlers[:] = [handler]
    else:
        handler.setFormatter(logging.Formatter(FORMAT.format(who=who), datefmt="%H:%M:%S"))
    root = logging.getLogger("ministream")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


def is_structured() -> bool:
    """Whether every line on standard error is to be a JSON object."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger("ministream").handlers)


def event_of(line: str) -> dict[str, str] | None:
    """The event of a line in JSON; None for any other line, also for one that was cut off."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"logger", "message"} <= set(event) else None


def get(name: str) -> logging.Logger:
    """The logger of one module: `log.get(__name__)`."""
    return logging.getLogger(name)
