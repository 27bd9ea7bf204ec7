"""What one check of a machine has found, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ministream.config import Config
from ministream.errors import ExitCode


class Condition(enum.StrEnum):
    """How a part of the machine is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report; `remedy` is empty where nothing is to be done."""

    subject: str
    condition: Condition
    found: str
    remedy: str = ""


def good(subject: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding(subject=subject, condition=Condition.OK, found=found)


def doubtful(subject: str, found: str, remedy: str) -> Finding:
    """Jobs run, but not as well as they could, or not for long."""
    return Finding(subject=subject, condition=Condition.WARNING, found=found, remedy=remedy)


def bad(subject: str, found: str, remedy: str) -> Finding:
    """Jobs do not run."""
    return Finding(subject=subject, condition=Condition.FAILED, found=found, remedy=remedy)


def left_out(subject: str, why: str) -> Finding:
    """Nothing to check."""
    return Finding(subject=subject, condition=Condition.SKIPPED, found=why)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What to check: this machine for a configuration, with `ranks` ranks that write into `folder`.

    `launcher` is the command prefix that starts the ranks (none: mpirun here), `against` the control server of the
    other side.
    """

    config: Config
    folder: Path
    ranks: int = 2
    launcher: tuple[str, ...] = ()
    against: str | None = None


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """COMPLETE without anything to do, INCOMPLETE with warnings, USAGE where something does not work."""
    found = {finding.condition for finding in findings}
    if Condition.FAILED in found:
        return ExitCode.USAGE
    return ExitCode.INCOMPLETE if Condition.WARNING in found else ExitCode.COMPLETE
