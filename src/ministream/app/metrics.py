"""The metrics of a process: its endpoint, and what every job with a control server tells of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ministream.app.open_network import check_open
from ministream.errors import ConfigError
from ministream.monitor.catalogue import (
    CALLS_REFUSED,
    CERTIFICATE_END,
    CERTIFICATE_GOOD,
    CERTIFICATE_SOON,
    CREDENTIALS_READABLE,
    SESSIONS,
    SESSIONS_ENDED,
    SESSIONS_OPENED,
    TUNNEL_BYTES,
    TUNNEL_REFUSED,
    Reading,
)
from ministream.tunnel import expiry
from ministream.tunnel.address import parse_endpoint
from ministream.tunnel.control import ControlServer

if TYPE_CHECKING:
    from ministream.monitor.endpoint import MetricsEndpoint


def open_endpoint(address: str, *, open_network: bool) -> MetricsEndpoint:
    """The endpoint at HOST:PORT, not serving yet.

    Raises ConfigError: an address off loopback without `open_network`, or that cannot be bound, and where
    prometheus-client is not installed.
    """
    endpoint = parse_endpoint(address, any_port=True)
    check_open([f"tcp://{endpoint}"], allowed=open_network, instead="Serve metrics on 127.0.0.1")
    try:
        from ministream.monitor.endpoint import MetricsEndpoint
    except ModuleNotFoundError as error:
        raise ConfigError("--metrics needs the package prometheus-client: pip install prometheus-client") from error
    return MetricsEndpoint(endpoint.host, endpoint.port)


def tunnel_readings(server: ControlServer) -> Iterator[Reading]:
    """Sessions, bytes, refusals and certificates of a control server."""
    counts = server.counts()
    for (role, state), number in counts.sessions.items():
        yield Reading(SESSIONS, number, (role, state))
    yield Reading(SESSIONS_OPENED, counts.opened)
    for state, number in counts.ended.items():
        yield Reading(SESSIONS_ENDED, number, (state,))
    yield Reading(TUNNEL_BYTES, counts.inward, ("inward",))
    yield Reading(TUNNEL_BYTES, counts.outward, ("outward",))
    yield Reading(TUNNEL_REFUSED, counts.refused_connections)
    for code, number in server.refusals.items():
        yield Reading(CALLS_REFUSED, number, (code,))
    if server.credentials_folder is not None:
        yield from certificate_readings(server.credentials_folder)


def certificate_readings(folder: Path) -> Iterable[Reading]:
    """Validity and end of a party's certificates."""
    try:
        held = expiry.status(folder)
    except ConfigError:
        return [Reading(CREDENTIALS_READABLE, 0)]
    found = [Reading(CREDENTIALS_READABLE, 1)]
    for one in held:
        found.append(Reading(CERTIFICATE_END, one.certificate.not_valid_after_utc.timestamp(), (one.file,)))
        found.append(Reading(CERTIFICATE_SOON, float(expiry.is_soon(one.certificate)), (one.file,)))
        found.append(Reading(CERTIFICATE_GOOD, float(one.state == "valid"), (one.file,)))
    return found
