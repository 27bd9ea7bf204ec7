"""How many lines a data server's processes may put into the log: callers that prove nothing cause some of them."""

from __future__ import annotations

import time
from logging import Logger

LINES_PER_MINUTE = 60


class LogBudget:
    """Lines of one process per minute; the next minute begins with how many were held back. `who` names the process."""

    def __init__(self, log: Logger, who: str) -> None:
        self._log, self._who = log, who
        self._minute = self._passed = self._held_back = 0

    def pass_on(self, level: int, text: str) -> None:
        """Log a line, unless its minute is used up; a line that the log would not show uses nothing."""
        if not self._log.isEnabledFor(level):
            return
        if (now := int(time.monotonic() // 60)) != self._minute:
            if self._held_back:
                self._log.log(level, "%s: %d more lines in that minute", self._who, self._held_back)
            self._minute, self._passed, self._held_back = now, 0, 0
        if self._passed >= LINES_PER_MINUTE:
            self._held_back += 1
            return
        self._passed += 1
        self._log.log(level, "%s: %s", self._who, text)
