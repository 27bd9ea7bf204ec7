"""The control server of a job, and the gateway that is nothing else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from ministream.app.announce import announce
from ministream.config import TunnelSection
from ministream.tunnel.control import ControlServer
from ministream.tunnel.credentials import Credentials


def embedded(section: TunnelSection, side: str, targets: Sequence[str] = ()) -> ControlServer | None:
    """The control server that a job hosts on its side (PROD, CONS), not started; None without `control`.

    `targets` are the job's own data addresses (a `tcp://` in front is taken off). Raises ConfigError.
    """
    if section.control is None:
        return None
    return ControlServer(
        side=side,
        address=section.control,
        kind=section.kind,
        data_host=section.data_host,
        port_range=section.port_range,
        credentials=None if section.credentials is None else Credentials.load(section.credentials),
        insecure=section.insecure,
        targets=[target.removeprefix("tcp://") for target in targets],
    )


def serve(server: ControlServer, announce_to: Path | None) -> None:
    """Run a control server until SIGTERM or SIGINT; every session ends with it."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with server:
        announce(announce_to, control=server.address)
        stop.wait()
