"""Accounting of every projection of a scan: one ledger on each side of the stream, and their comparison.

    producer    delivered ─▶ sent
                    └▶ dropped, by policy
    receiver    received ─▶ used (entered the window) ─▶ imaged (in an image) ─▶ written (in a file)
                    ├▶ repeated
                    └▶ refused, by kind and reason

Counts never decrease. A count refers to projections, except `refusals`, which also holds flats and darks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ministream.model import FrameKind


@dataclass(kw_only=True, slots=True)
class Ledger:
    """The counts of one side; the fields of the other side stay 0.

    `delivered`: handed to the producer by the detector or file; `sent`: entered the stream; `drops`: dropped
    intentionally, by policy. `received`: arrived, valid or not; `refusals`: arrived but invalid, by kind of frame and
    reason; `repeated`: duplicates; `used`: entered the window; `mended`: used projections with replaced bad pixels;
    `imaged`: used by an update of the image; `written`: in an image that is in a complete file.
    """

    delivered: int = 0
    sent: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    received: int = 0
    refusals: dict[str, dict[str, int]] = field(default_factory=dict)
    repeated: int = 0
    used: int = 0
    mended: int = 0
    imaged: int = 0
    written: int = 0

    def drop(self, policy: str, projections: int = 1) -> None:
        """Count projections that the producer dropped intentionally."""
        self.drops[policy] = self.drops.get(policy, 0) + projections

    def refuse(self, kind: FrameKind, reason: str) -> None:
        """Count one frame that arrived but is invalid; `reason` is a short, stable identifier."""
        reasons = self.refusals.setdefault(kind.name.lower(), {})
        reasons[reason] = reasons.get(reason, 0) + 1

    @property
    def dropped(self) -> int:
        """Projections dropped intentionally."""
        return sum(self.drops.values())

    @property
    def refused(self) -> int:
        """Projections that arrived but are invalid."""
        return sum(self.refusals.get(FrameKind.PROJECTION.name.lower(), {}).values())

    @property
    def unsent(self) -> int:
        """Projections that the producer still holds."""
        return self.delivered - self.dropped - self.sent

    @property
    def waiting(self) -> int:
        """Projections that arrived and have not reached the window yet."""
        return self.received - self.refused - self.repeated - self.used

    def imbalance(self) -> str:
        """The first inconsistency of the counts, in one line; empty if they are consistent."""
        ordered = {"used": self.used, "imaged": self.imaged, "written": self.written}
        if min(dataclasses.astuple(self.totals())) < 0:
            return f"negative numbers in {self.totals()}"
        if self.delivered and self.unsent < 0:
            return f"{self.sent} sent and {self.dropped} dropped of {self.delivered} delivered"
        if self.waiting < 0:
            return f"{self.used} used, {self.repeated} repeated and {self.refused} refused of {self.received} received"
        if sorted(ordered.values(), reverse=True) != list(ordered.values()) or self.mended > self.used:
            return f"{ordered} must not increase, mended ({self.mended}) must not exceed used"
        return ""

    def totals(self) -> LedgerTotals:
        """The counts as plain numbers."""
        return LedgerTotals(**{item.name: getattr(self, item.name) for item in dataclasses.fields(LedgerTotals)})

    def copy(self) -> Self:
        """An independent copy."""
        return self.from_dict(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    def take(self, values: Mapping[str, Any]) -> None:
        """Replace all counts with the result of `as_dict`."""
        other = type(self).from_dict(values)
        for item in dataclasses.fields(self):
            setattr(self, item.name, getattr(other, item.name))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Create a ledger from the result of `as_dict`."""
        drops, refusals = dict(values["drops"]), {kind: dict(count) for kind, count in values["refusals"].items()}
        return cls(**{**values, "drops": drops, "refusals": refusals})


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerTotals:
    """The numbers of a ledger, for tables and attributes."""

    delivered: int
    sent: int
    dropped: int
    received: int
    refused: int
    repeated: int
    used: int
    mended: int
    imaged: int
    written: int


def both_sides(producer: Ledger | None, receiver: Ledger) -> dict[str, int | None]:
    """All counts of a scan; None for those that the producer did not report."""
    theirs = dict.fromkeys(("delivered", "sent", "dropped"), None)
    told = dataclasses.asdict(producer.totals()) if producer is not None else theirs
    ours = dataclasses.asdict(receiver.totals())
    return {name: told[name] if name in theirs else count for name, count in ours.items()}


def shortfalls(producer: Ledger | None, receiver: Ledger) -> tuple[str, ...]:
    """Why the written volume does not hold every projection that was delivered; empty when it does.

    `producer` is the ledger of the producer at the end of the stream, None if END was not received. Refused flats and
    darks count too, because the correction then does not use all measured data.
    """
    if producer is None:
        return ("the stream ended before the producer's END message", *_lost(receiver))
    lost = [f"{count} dropped by the producer ({policy})" for policy, count in producer.drops.items() if count]
    if producer.unsent > 0:
        lost.append(f"{producer.unsent} delivered but not sent")
    if producer.sent != receiver.received:
        lost.append(f"{producer.sent} sent, {receiver.received} received")
    return (*lost, *_lost(receiver))


def _lost(receiver: Ledger) -> list[str]:
    lost = [
        f"{count} {kind}{'s' if count > 1 else ''} refused ({reason})"
        for kind, reasons in receiver.refusals.items()
        for reason, count in reasons.items()
    ]
    if receiver.waiting:
        lost.append(f"{receiver.waiting} received but not used")
    if receiver.used != receiver.written:
        lost.append(f"{receiver.used - receiver.written} used but not in the written volume")
    return lost


def complete(producer: Ledger | None, receiver: Ledger) -> bool:
    """Whether every projection that was delivered is in a written volume."""
    return not shortfalls(producer, receiver)
