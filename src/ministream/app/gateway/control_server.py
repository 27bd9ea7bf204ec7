"""The control server of a job, and the standalone gateway."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ministream import log
from ministream.app.announce import announce
from ministream.app.metrics import open_endpoint, tunnel_readings
from ministream.config import TunnelSection
from ministream.errors import ConfigError
from ministream.tunnel import client
from ministream.tunnel.address import parse_endpoint
from ministream.tunnel.control import ControlServer
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy

_LOG = log.get(__name__)


def embedded(section: TunnelSection, side: str, targets: Sequence[str] = ()) -> ControlServer | None:
    """The control server that a job hosts on its side (PROD, CONS), not started; None without `control`.

    A job that opens its session itself (`producer`) hosts one, by default on a free loopback port.
    `targets` are the job's own data addresses (a leading `tcp://` is removed). Raises ConfigError.
    """
    address = section.control or ("127.0.0.1:0" if section.producer and side == "CONS" else None)
    if address is None:
        return None
    credentials = None if section.credentials is None else Credentials.load(section.credentials)
    return ControlServer(
        side=side,
        address=address,
        kind=section.kind,
        data_host=section.data_host or _data_host(address, side, section.advertise),
        advertise=section.advertise if side == "PROD" else None,
        port_range=section.port_range,
        credentials=credentials,
        insecure=section.insecure,
        policy=section.policy or _own_clients(section, credentials),
        targets=[target.removeprefix("tcp://") for target in targets],
    )


def _data_host(address: str, side: str, advertise: str | None = None) -> str:
    """Where the data ports are unless the configuration says so: the other side reaches the control port's interface.

    Beside the consumer only this job connects to them. Raises ConfigError for a control port on every interface.
    """
    control = parse_endpoint(address, any_port=True)
    if side == "CONS" or control.is_loopback:
        return "127.0.0.1"
    if control.host in ("0.0.0.0", "::") and advertise is None:  # noqa: S104 - compared, not bound
        raise ConfigError(
            f"the control port {address} is on every interface, but the data ports need one that the other side"
            " reaches: name that address in --control, or add --set tunnel.data_host=ADDRESS;"
            " behind NAT, add --set tunnel.advertise=HOST"
        )
    return control.host


def _own_clients(section: TunnelSection, credentials: Credentials | None) -> Policy:
    """Without a policy file a job's server accepts sessions from the job's own client, or from the named clients."""
    if credentials is None:
        return Policy.for_job()
    own = [] if credentials.client_name is None else [credentials.client_name]
    names = section.clients or own
    if not names:
        _LOG.warning(
            "%s has no client certificate: every client of its authority may open this job's session;"
            " name the right client with --set 'tunnel.clients=[\"NAME\"]'",
            credentials.directory,
        )
    return Policy.for_job(names)


@contextmanager
def own_session(section: TunnelSection, server: ControlServer, num_conn: int, timeout_s: float) -> Iterator[None]:
    """Open a session between the producer's control server and this job's, waiting for the former if necessary, and
    release it at the end, also after an error.

    Raises PeerLostError when the producer's server does not answer in time, AccessError when it refuses.
    """
    assert section.producer is not None
    credentials = None if section.credentials is None else Credentials.load(section.credentials)
    with client.session(section.producer, server.address, credentials, num_conn, wait_s=timeout_s):
        yield


def serve(
    server: ControlServer, announce_to: Path | None, *, metrics: str | None = None, open_network: bool = False
) -> None:
    """Run a control server until SIGTERM or SIGINT; every session ends with it. `metrics` is HOST:PORT.

    Raises ConfigError as `open_endpoint` does.
    """
    stop = stop_event()
    with ExitStack() as stack:
        stack.enter_context(server)
        if metrics is not None:
            endpoint = stack.enter_context(open_endpoint(metrics, open_network=open_network))
            endpoint.add(lambda: tunnel_readings(server))
        announce(announce_to, control=server.address)
        stop.wait()


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set from now on."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop
