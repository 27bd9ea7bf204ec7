"""Every Prometheus metric that exists: names with base units, bounded labels. docs/metrics.md shows this table.

Nothing here needs prometheus-client, which only the endpoint imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ministream.monitor.measure import Latency

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

CATALOGUE: dict[str, Metric] = {}
"""By name, in the order of docs/metrics.md."""

DROP_REASONS = ("drop-oldest", "decimate", "source")
"""The reasons why a producer leaves out projections. Another producer may name others: labels must stay bounded."""

MAX_RANKS = 256
"""Ranks with a label of their own; the stages of all further ranks are added up under `others`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """`name` as Prometheus stores it; a histogram's series add `_bucket`, `_count` and `_sum`.

    `values` lists the possible values of each label, or says what bounds them. `jobs` serve it.
    """

    name: str
    kind: Kind
    text: str
    jobs: tuple[str, ...]
    values: dict[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.values)


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a metric now; `labels` are values in the order of the metric's labels."""

    metric: Metric
    value: float | Latency
    labels: tuple[str, ...] = ()


Source: TypeAlias = Callable[[], Iterable[Reading]]
"""Read at each scrape, in the endpoint's thread; must not wait for the job."""


def _metric(name: str, kind: Kind, text: str, jobs: str, /, **values: str) -> Metric:
    metric = Metric(name=f"ministream_{name}", kind=kind, text=text, jobs=tuple(jobs.split()), values=values)
    CATALOGUE[metric.name] = metric
    return metric


BUILD = _metric("build_info", "gauge", "1; the release", "recon producer s2cs", version="one")

PROJECTIONS = _metric(
    "projections_total", "counter", "Projections, as the ledger counts them", "recon",
    state="received, refused, repeated, used, mended, imaged, written",
)  # fmt: skip
EXPECTED = _metric("scan_projections", "gauge", "Projections that the scan announced; 0: unknown", "recon")
REFUSED = _metric(
    "refused_frames_total", "counter", "Frames that arrived but are not valid", "recon",
    kind="projection, flat, dark", reason="the fixed reasons of the wire and the gate",
)  # fmt: skip
DROPPED = _metric(
    "dropped_projections_total", "counter", "Projections that the producer left out", "recon producer",
    reason=", ".join((*DROP_REASONS, "other")),
)  # fmt: skip
LAG = _metric("lag_projections", "gauge", "Projections that have arrived and are not in the image yet", "recon")
LAST_ARRIVAL = _metric("last_arrival_timestamp_seconds", "gauge", "When the last projection arrived; 0: none", "recon")
RECEIVED_BYTES = _metric("received_bytes_total", "counter", "Bytes that rank 0 has received", "recon")
CONNECTIONS = _metric("connections_total", "counter", "Connections that rank 0 has made to the producer", "recon")
ASKED_AGAIN = _metric("damaged_frames_total", "counter", "Frames that arrived damaged and were sent again", "recon")
UPDATES = _metric("updates_total", "counter", "Updates of the image", "recon")
ITERATIONS = _metric("iterations_total", "counter", "Iterations of all updates", "recon")
RESIDUAL = _metric("residual_norm", "gauge", "|b - A x| of the last update", "recon")
IMAGE_AGE = _metric(
    "image_age_seconds", "gauge", "Age of the newest projection in the image, at the last update", "recon"
)
MENDED_PIXELS = _metric("mended_pixels_total", "counter", "Bad pixels that were replaced", "recon")
WARNINGS = _metric(
    "scan_warnings", "gauge", "1 for each warning about the scan", "recon", code="the fixed codes of docs/odd-scans.md"
)
PHASE = _metric(
    "phase",
    "gauge",
    "1 for the phase of the job, 0 for the others",
    "recon",
    phase="waiting, live, complete, incomplete",
)
RANKS = _metric("ranks", "gauge", "Ranks of the job", "recon")
STAGES = _metric(
    "stage_seconds_total", "counter", "Time of each rank in each stage, as of its last update", "recon",
    rank=f"0 to {MAX_RANKS - 1}, others", stage="the stages of summary.json",
)  # fmt: skip

LATENCY = _metric(
    "latency_seconds", "histogram",
    "From the acquisition of a projection until it was sent, received, in the image, and published",
    "recon producer", until="sent, received, image, published",
)  # fmt: skip
CLOCK_TROUBLE = _metric(
    "negative_latencies_total", "counter", "Latencies below zero: the clocks of the two machines differ", "recon"
)

SENT = _metric("sent_projections_total", "counter", "Projections that entered the stream", "producer")
SENT_BYTES = _metric("sent_bytes_total", "counter", "Bytes of pixels sent, each frame counted once", "producer")
RESENT = _metric("retransmitted_frames_total", "counter", "Frames that were sent again", "producer")
UNACKNOWLEDGED = _metric("unacknowledged_frames", "gauge", "Frames sent that the receiver has not used yet", "producer")
BLOCKED = _metric("blocked_seconds_total", "counter", "Time that the producer waited for the receiver", "producer")

SESSIONS = _metric(
    "sessions", "gauge", "Sessions of the tunnel", "recon producer s2cs", role="PROD, CONS",
    state="pending, ready, active",
)  # fmt: skip
SESSIONS_OPENED = _metric("sessions_opened_total", "counter", "Sessions that were opened", "recon producer s2cs")
SESSIONS_ENDED = _metric(
    "sessions_ended_total", "counter", "Sessions that have ended", "recon producer s2cs", state="released, expired"
)
TUNNEL_BYTES = _metric(
    "tunnel_bytes_total", "counter", "Bytes of all sessions, also of those that have ended", "recon producer s2cs",
    direction="inward, outward",
)  # fmt: skip
TUNNEL_REFUSED = _metric(
    "tunnel_refused_connections_total", "counter", "Connections that did not have the session's key",
    "recon producer s2cs",
)  # fmt: skip
CALLS_REFUSED = _metric(
    "control_refused_calls_total", "counter", "Calls that the control server refused", "recon producer s2cs",
    code="the status codes of gRPC",
)  # fmt: skip
CERTIFICATE_END = _metric(
    "certificate_expiry_timestamp_seconds", "gauge", "When a certificate ends", "recon producer s2cs",
    file="ca.crt, server.crt, client.crt",
)  # fmt: skip
CERTIFICATE_SOON = _metric(
    "certificate_expires_soon",
    "gauge",
    "1 for a certificate that ends within 14 days, unless it was made for less than 28",
    "recon producer s2cs",
    file="ca.crt, server.crt, client.crt",
)
CERTIFICATE_GOOD = _metric(
    "certificate_valid", "gauge", "1 for a certificate that is valid and not revoked, else 0", "recon producer s2cs",
    file="ca.crt, server.crt, client.crt",
)  # fmt: skip
CREDENTIALS_READABLE = _metric(
    "credentials_readable", "gauge", "0: the folder or its list of revoked certificates cannot be used",
    "recon producer s2cs",
)  # fmt: skip


def dropped(counts: Mapping[str, int]) -> Iterator[Reading]:
    """Projections left out, by reason; unknown reasons together."""
    others = 0
    for reason, count in counts.items():
        if reason in DROP_REASONS:
            yield Reading(DROPPED, count, (reason,))
        else:
            others += count
    if others:
        yield Reading(DROPPED, others, ("other",))


def rows() -> list[str]:
    """The table of docs/metrics.md, a line for each metric."""
    found = []
    for metric in CATALOGUE.values():
        labels = "; ".join(f"`{label}`: {values}" for label, values in metric.values.items())
        cells = (f"`{metric.name}`", metric.kind, ", ".join(metric.jobs), metric.text.replace("|", "\\|"), labels)
        found.append(f"| {' | '.join(cells)} |")
    return found
