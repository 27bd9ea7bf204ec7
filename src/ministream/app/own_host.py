"""The name under which other nodes reach this one."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping

from ministream import log

LOOPBACK = "127.0.0.1"

# What Slurm, PBS and LSF set on the nodes of a job.
_BATCH = ("SLURMD_NODENAME", "PBS_NODEFILE", "LSB_DJOB_HOSTFILE")

# An address of TEST-NET-1: the kernel chooses the interface that leads to other networks, and nothing is sent.
_ELSEWHERE = ("192.0.2.1", 9)

_LOG = log.get(__name__)


def own_host(environment: Mapping[str, str]) -> str:
    """On a node of a batch job its name from Slurm, or else the host's own name or address; elsewhere loopback.

    A name that does not resolve, that leads to loopback, or to another machine, is not used: Slurm's names need not be
    those of the network, and Debian gives a host's own name the address 127.0.1.1.
    """
    if not any(environment.get(name) for name in _BATCH):
        return LOOPBACK
    rejected: list[str] = []
    for host in _candidates(environment):
        why = _unusable(host)
        if why is None:
            if rejected:
                _LOG.warning("%s; the servers listen on %s (--host names another)", ", ".join(rejected), host)
            return host
        rejected.append(f"{host} {why}")
    _LOG.warning("%s; the servers listen on loopback alone (--host names another)", ", ".join(rejected))
    return LOOPBACK


def _candidates(environment: Mapping[str, str]) -> Iterator[str]:
    known = [environment.get("SLURMD_NODENAME", ""), os.uname().nodename, socket.getfqdn(), _routed_address()]
    yield from dict.fromkeys(filter(None, known))


def _unusable(host: str) -> str | None:
    """Why servers of this machine cannot have this name for other nodes; None if they can."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for an empty or overlong part of a name
        return f"cannot be resolved ({getattr(error, 'strerror', error)})"
    for family, kind, _, _, address in found:
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            return f"resolves to {address[0]}"
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)
            except OSError as error:
                return f"resolves to {address[0]}, which cannot be bound here ({error.strerror})"
    return None


def _routed_address() -> str:
    """This machine's address towards other networks; empty without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return ""
        return str(probe.getsockname()[0])
