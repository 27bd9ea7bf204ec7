"""One log for one job: human lines on standard error, never a secret."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname).1s {who} %(name)s: %(message)s"


def setup(who: str, level: str = "INFO") -> None:
    """Send the package's log to standard error; `who` names the process (`producer`, `rank 3`, `s2cs`)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT.format(who=who), datefmt="%H:%M:%S"))
    root = logging.getLogger("ministream")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


def get(name: str) -> logging.Logger:
    """The logger of one module: `log.get(__name__)`."""
    return logging.getLogger(name)
