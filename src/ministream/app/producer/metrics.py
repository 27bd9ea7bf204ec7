"""Prometheus metrics of the producer job."""

from __future__ import annotations

from collections.abc import Iterator

from ministream.app.producer.accounting import AccountedSender
from ministream.monitor import catalogue
from ministream.monitor.catalogue import Reading


def readings(sender: AccountedSender) -> Iterator[Reading]:
    """What has been sent so far."""
    report = sender.report
    yield Reading(catalogue.SENT, report.projections)
    yield Reading(catalogue.SENT_BYTES, report.bytes)
    yield Reading(catalogue.RESENT, report.retransmitted)
    yield Reading(catalogue.BLOCKED, report.blocked_s)
    if report.unacknowledged is not None:
        yield Reading(catalogue.UNACKNOWLEDGED, report.unacknowledged)
    yield from catalogue.dropped(sender.dropped.copy())
    if sender.latency is not None and sender.latency.count:
        yield Reading(catalogue.LATENCY, sender.latency, ("sent",))
