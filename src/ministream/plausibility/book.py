"""The notices of one run: each code once, accepted or not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from ministream import log
from ministream.errors import InputError
from ministream.model import Notice

_LOG = log.get(__name__)


class NoticeBook:
    """Collects notices and logs each code once; a later notice of the same code replaces the one before.

    Codes in `accept` are acknowledged: they are logged as information, and stay in `notices`, marked by `accepted`.
    """

    def __init__(self, *, strict: bool = False, accept: Collection[str] = ()) -> None:
        self._strict, self._accept = strict, frozenset(accept)
        self._notices: dict[str, Notice] = {}

    @property
    def notices(self) -> tuple[Notice, ...]:
        """All notices, in the order of their first occurrence."""
        return tuple(self._notices.values())

    @property
    def accepted(self) -> tuple[str, ...]:
        """The codes among them that the user has acknowledged."""
        return tuple(code for code in self._notices if code in self._accept)

    def restore(self, notices: Iterable[Notice]) -> None:
        """Take over the notices of an earlier run of the scan, which has logged them."""
        self._notices = {notice.code: notice for notice in notices}

    def accepts(self, code: str) -> bool:
        """Whether the user has acknowledged this code, whether or not it occurred."""
        return code in self._accept

    def add(self, notices: Iterable[Notice]) -> None:
        """Add notices. Raises InputError in a strict run for a code that is not acknowledged."""
        for notice in notices:
            known, accepted = notice.code in self._notices, notice.code in self._accept
            self._notices[notice.code] = notice
            if not known:
                level = logging.INFO if accepted else logging.WARNING
                _LOG.log(level, "%s: %s%s", notice.code, notice.text, " (accepted)" if accepted else "")
            if self._strict and not accepted:
                raise InputError(
                    f"{notice.code}: {notice.text} A strict run expects no warnings. "
                    f"Acknowledge this one with --accept {notice.code}, or leave out --strict"
                )
