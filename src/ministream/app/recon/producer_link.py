"""How rank 0 reaches the producer: this job's end of the tunnel, or the address of a direct connection."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ministream.app.announce import announce
from ministream.app.gateway.control_server import embedded, own_session
from ministream.config import Config
from ministream.errors import ConfigError
from ministream.transport import open_wire
from ministream.tunnel import curve
from ministream.tunnel.control import ControlServer

_ONE_NODE = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:", "ipc:", "inproc:")


@dataclass(frozen=True, kw_only=True)
class Route:
    """The route to the producer, as seen by rank 0 on `node`. It is broadcast over MPI to the receiving ranks and
    contains no secret.
    """

    urls: tuple[str, ...]
    node: str

    def urls_for(self, receiver: int, streams: int) -> tuple[str, ...]:
        """The addresses for receiving rank number `receiver`; it receives data from the first `streams`.

        Raises ConfigError for a local address of rank 0's node, which other nodes cannot connect to.
        """
        first = receiver * streams % len(self.urls)
        url, here = self.urls[first], os.uname().nodename
        if here != self.node and url.startswith(_ONE_NODE):
            raise ConfigError(
                f"{here} cannot reach {url}, a local address of {self.node}. With --ingress over several nodes set "
                f"tunnel.data_host={self.node} (--set), or give --connect an address that all nodes reach."
            )
        return self.urls[first:] + self.urls[:first]


class ProducerLink:
    """Hosts this side's control server if configured, and provides the addresses of the endpoints.

    Raises ConfigError where the configuration defines no route to the producer.
    """

    def __init__(self, config: Config, announce_to: Path | None) -> None:
        self._config = config
        self._stack = ExitStack()
        self._session_uid: str | None = None
        curve.load(config.stream.curve, "receiver")  # report invalid keys before anybody waits for a connection
        every_rank = open_wire(config.stream.wire, config).every_rank and config.tunnel.control is None
        if config.aps.every_rank and not every_rank:
            raise ConfigError("[aps] every_rank is for --source-wire tracemq without a tunnel")
        connect = config.stream.connect
        self._server = embedded(config.tunnel, "CONS")
        if self._server is None and connect is None:
            raise ConfigError(
                "no route to the producer: set --connect tcp://HOST:PORT for a direct connection, "
                "--producer HOST:PORT for a tunnel to the producer's control server, or --control HOST:PORT to host "
                "this side's end of a tunnel that another process opens"
            )
        if self._server is not None:
            self._stack.enter_context(self._server)
        announce(announce_to, control=self._server.address if self._server else None, data=connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self) -> Route:
        """Wait for the tunnel, or open it.

        Raises PeerLostError when it is not opened within the configured time, AccessError when the producer's control
        server rejects the request.
        """
        return Route(urls=self._urls(), node=os.uname().nodename)

    def _urls(self) -> tuple[str, ...]:
        stream, tunnel = self._config.stream, self._config.tunnel
        if self._server is None:
            return tuple(str(stream.connect).split(","))
        if tunnel.producer is not None:
            connections = 2 if self._config.aps.sync else stream.ingress * stream.streams
            self._stack.enter_context(own_session(tunnel, self._server, connections, stream.connect_timeout_s))
        session = self._server.wait_session(stream.connect_timeout_s)
        self._session_uid = session.uid
        # on every interface: this job itself reaches them on loopback
        return tuple(f"tcp://{listener}".replace("//0.0.0.0:", "//127.0.0.1:") for listener in session.listeners)

    @property
    def server(self) -> ControlServer | None:
        """This side's control server, if any."""
        return self._server

    @property
    def failure(self) -> str | None:
        """The reason why this side's end of the tunnel was lost, if any."""
        return self._server.failure if self._server is not None else None

    def tunnel(self) -> dict[str, str | int] | None:
        """Kind of data server, cipher and bytes of the tunnel in use; None without one."""
        if self._server is None or self._session_uid is None:
            return None
        session = next((s for s in self._server.sessions() if s.uid == self._session_uid), None)
        if session is None:
            return {"kind": "gone"}
        carried = session.traffic
        counted = {"inward": carried.inward, "outward": carried.outward}
        told = {way: count for way, count in counted.items() if count is not None}
        return {"kind": session.kind, "cipher": carried.cipher or "none", **told}
