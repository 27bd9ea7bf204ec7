"""Runs every check of a machine; one that breaks hides no other."""

from __future__ import annotations

from collections.abc import Iterator

from ministream import registry
from ministream.app.doctor.finding import Finding, Subject, bad
from ministream.errors import MinistreamError

CHECKS = "ministream.app.doctor.checks"


def examine(subject: Subject) -> Iterator[Finding]:
    """The findings of all checks, as they are made."""
    for name in registry.names(CHECKS):
        yield from _examine(name, subject)


def _examine(name: str, subject: Subject) -> Iterator[Finding]:
    try:
        yield from registry.load(CHECKS, name).examine(subject)
    except MinistreamError as error:
        yield bad(name, "the check could not be made", str(error))
    except Exception as error:  # noqa: BLE001 - the other checks are still of use
        yield bad(name, f"internal error: {type(error).__name__}: {error}", "report it with this line")
