"""The addresses that the configuration names: whether they are this machine's, and their ports free."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ministream.app.doctor.finding import Finding, Subject, bad, doubtful, good
from ministream.config import Config
from ministream.errors import MinistreamError
from ministream.tunnel.address import Endpoint, parse_endpoint

_INTERFACES = Path("/sys/class/net")


def examine(subject: Subject) -> Iterator[Finding]:
    """Every configured address, the range of data ports, this machine's name, its interfaces."""
    for key, option, address in addresses_of(subject.config):
        yield _address(key, option, address)
    if subject.config.tunnel.port_range is not None:
        yield _range(subject.config.tunnel.data_host or "127.0.0.1", subject.config.tunnel.port_range)
    yield _own_name()
    yield good("interfaces", ", ".join(_interfaces()) or "loopback alone")


def addresses_of(config: Config) -> list[tuple[str, str, str]]:
    """Key, option and HOST:PORT of every address that a job would listen on; at least one of loopback."""
    named = [
        ("tunnel.control", "--control", config.tunnel.control),
        ("producer.listen", "--listen", config.producer.listen),
        ("producer.metrics", "--metrics", config.producer.metrics),
        ("output.live", "--live", config.output.live),
        ("output.publish", "--pub-addr", config.output.publish),
        ("output.metrics", "--metrics", config.output.metrics),
        ("aps.sync", "--sync", config.aps.sync),
    ]
    tcp = [(key, option, url.removeprefix("tcp://")) for key, option, url in named if url is not None]
    return [(key, option, address.replace("*:", "0.0.0.0:")) for key, option, address in tcp if "://" not in address]


def _address(key: str, option: str, text: str) -> Finding:
    subject = f"address {key}"
    try:
        endpoint = parse_endpoint(text, any_port=True)
    except MinistreamError as error:
        return bad(subject, str(error), f"write HOST:PORT ({option})")
    trouble = _bind(endpoint)
    if trouble is None:
        return good(subject, f"{endpoint} is free" if endpoint.port else f"{endpoint.host}, any free port")
    remedies = {
        errno.EADDRINUSE: f"choose another port with {option}; `ss -ltnp` shows which program has this one",
        errno.EACCES: f"ports below 1024 need privileges: choose a higher one with {option}",
    }
    own = f"choose an address of this machine with {option}: {', '.join(_interfaces()) or '127.0.0.1'}"
    return bad(subject, f"{endpoint}: {trouble.strerror}", remedies.get(trouble.errno or 0, own))


def _bind(endpoint: Endpoint) -> OSError | None:
    """Why a job could not listen there."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(1)
    except OSError as error:
        return error
    return None


def _range(host: str, ports: tuple[int, int]) -> Finding:
    first, last = ports
    free = sum(_bind(Endpoint(host, port)) is None for port in range(first, last + 1))
    found = f"{free} of {last - first + 1} are free on {host} ({first}-{last})"
    if free:
        return good("data ports", found)
    return bad("data ports", found, "choose another range with --set tunnel.port_range=[FIRST,LAST]")


def _own_name() -> Finding:
    name = os.uname().nodename
    try:
        found = sorted({str(one[4][0]) for one in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)})
    except OSError as error:
        found, why = [], error.strerror or "cannot be resolved"
    else:
        why = f"is {', '.join(found)} here, which other machines cannot reach"
    if any(not Endpoint(address, 1).is_loopback for address in found):
        return good("host name", f"{name} is {', '.join(found)}")
    if "SLURM_JOB_ID" not in os.environ:
        return good("host name", f"{name} {why}; jobs on several machines need launch --host ADDRESS")
    remedy = "name an address that the other side reaches: launch --host ADDRESS"
    return doubtful("host name", f"{name} {why}", remedy)


def _interfaces() -> list[str]:
    """Names of the interfaces that are up, with their MTU, without loopback."""
    found = []
    for folder in sorted(_INTERFACES.glob("*")):
        try:
            up = (folder / "operstate").read_text().strip() in {"up", "unknown"}
            mtu = int((folder / "mtu").read_text())
        except (OSError, ValueError):  # an entry that is no interface, or has just gone
            continue
        if up and folder.name != "lo":
            found.append(f"{folder.name} (MTU {mtu})")
    return found
