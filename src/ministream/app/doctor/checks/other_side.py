"""The way to the other side's control server: reachable, authenticated, its clock, packets of full size both ways."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator

from ministream.app.doctor.finding import Finding, Subject, bad, doubtful, good
from ministream.errors import AccessError, PeerError, PeerLostError
from ministream.tunnel import expiry
from ministream.tunnel.address import Endpoint, parse_endpoint
from ministream.tunnel.control_client import Access, ControlClient, Echo, UnimplementedError
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.peer_certificate import certificate_at, context_for

_CONNECT_S = 5.0
_TRIES = 5
# More than any one packet can hold, less than a message may.
_PAYLOAD_BYTES = 48 << 10
CLOCK_LIMIT_S = 0.1
_IP_MTU = 14  # linux/in.h
_LARGE = (
    "small packets pass and large ones do not: a link on the way has a smaller MTU, and its ICMP messages are "
    "filtered. Let them pass, or lower the MTU here: ip link set dev INTERFACE mtu 1280"
)


def examine(subject: Subject) -> Iterator[Finding]:
    """Nothing without `--against`."""
    if subject.against is None:
        return
    endpoint = parse_endpoint(subject.against)
    reached = _reach(endpoint)
    yield reached
    if reached.remedy:
        return
    folder = subject.config.tunnel.credentials
    credentials = Credentials.load(folder) if folder is not None else None
    if credentials is not None:
        yield _certificate(endpoint, credentials)
    yield from _conversation(endpoint, credentials)


def _reach(endpoint: Endpoint) -> Finding:
    try:
        with socket.create_connection((endpoint.host, endpoint.port), _CONNECT_S) as connection:
            segment = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            mtu = f", path MTU {connection.getsockopt(socket.IPPROTO_IP, _IP_MTU)}" if _is_v4(connection) else ""
    except OSError as error:
        remedy = (
            "start the other side's control server on an address that this machine reaches (s2cs --listen, launch "
            "--host); open its port in the firewall, from the consumer's side to the producer's"
        )
        return bad("other side", f"{endpoint}: {error.strerror or error}", remedy)
    return good("other side", f"{endpoint} accepts connections{mtu}, segments of {segment} bytes")


def _is_v4(connection: socket.socket) -> bool:
    return connection.family == socket.AF_INET


def _certificate(endpoint: Endpoint, credentials: Credentials) -> Finding:
    subject = "its certificate"
    try:
        found = certificate_at(endpoint, context_for(credentials.ca), _CONNECT_S)
    except OSError as error:
        remedy = (
            f"use certificates of one authority on both sides, with --host {endpoint.host}: ministream certs server"
        )
        return bad(subject, f"not accepted: {error}", remedy)
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    text = f"expires {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if expiry.is_soon(found):
        remedy = "ask its operator for ministream certs renew"
        return doubtful(subject, f"{text}, in {left.total_seconds() / 86400:.1f} days", remedy)
    return good(subject, text)


def _conversation(endpoint: Endpoint, credentials: Credentials | None) -> Iterator[Finding]:
    """Small calls for the clock, then a large one that needs packets of full size both ways."""
    with ControlClient(str(endpoint), Access.of(credentials)) as client:
        try:
            quickest = min((client.echo(b"") for _ in range(_TRIES)), key=lambda echo: echo.seconds)
        except UnimplementedError:
            text = "does not measure clocks: it is a stock server or an earlier release"
            yield doubtful("clocks", f"{endpoint} {text}", "compare `date -u` on both machines by hand")
            return
        except AccessError as error:
            yield bad("admission", str(error), "ask its operator for a client certificate: ministream certs client")
            return
        except PeerLostError as error:
            yield bad(
                "admission", str(error), f"look into the log of its control server. If it shows no call, {_LARGE}"
            )
            return
        except PeerError as error:
            yield bad("admission", str(error), "look into the log of its control server")
            return
        yield good("admission", f"calls are answered in {quickest.seconds * 1e3:.1f} ms")
        yield _clocks(quickest)
        yield _packets(client)


def _clocks(echo: Echo) -> Finding:
    found = f"the other side's is {echo.ahead_s:+.3f} s ahead (± {echo.seconds / 2:.3f} s)"
    if abs(echo.ahead_s) <= CLOCK_LIMIT_S + echo.seconds / 2:
        return good("clocks", found)
    remedy = "latencies are wrong by as much: let both machines follow a time server (timedatectl set-ntp true, chrony)"
    return doubtful("clocks", found, remedy)


def _packets(client: ControlClient) -> Finding:
    try:
        echo = client.echo(b"\0" * _PAYLOAD_BYTES)
    except PeerError as error:
        return bad("large packets", str(error), _LARGE)
    return good("large packets", f"{_PAYLOAD_BYTES >> 10} KiB there and back in {echo.seconds * 1e3:.1f} ms")
