"""Allowed targets of a session: resolves the listeners that callers name and checks every address."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence

from ministream.tunnel.address import Endpoint, PortlessHost, parse_endpoint, parse_entry
from ministream.tunnel.policy import Policy, Target
from ministream.tunnel.proxy import Addresses
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role

_MAX_TARGETS = 256
_REACH_S = 5.0
_ANYWHERE = (Target("*", 1, 65535),)


def parse_all(listeners: Sequence[str]) -> tuple[Endpoint, ...]:
    """The listeners of update. Raises RefusedError (INVALID_ARGUMENT)."""
    _check_number(listeners)
    return tuple(parse_endpoint(text.strip()) for text in listeners)


def parse_hello(listeners: Sequence[str]) -> tuple[Endpoint | PortlessHost, ...]:
    """The listeners of hello. Raises RefusedError (INVALID_ARGUMENT)."""
    _check_number(listeners)
    return tuple(parse_entry(text.strip()) for text in listeners)


def _check_number(listeners: Sequence[str]) -> None:
    if len(listeners) > _MAX_TARGETS:
        raise RefusedError(Code.INVALID_ARGUMENT, f"{len(listeners)} listeners; at most {_MAX_TARGETS}")


def default_rules(role: Role, peer: bytes | None, own: Sequence[Endpoint]) -> tuple[Target, ...]:
    """Where a server without a list of targets may connect to; `own` is the embedding job's, `peer` the other side's
    offer.

    Beside the producer only the embedding job itself. Beside the consumer any address, if the server there
    must prove to be the other side of this session before a byte of data moves.
    """
    if role is Role.CONS and peer is not None:
        return _ANYWHERE
    return tuple(Target(end.host, end.port, end.port) for end in own)


async def resolve(target: Endpoint, caller: str, policy: Policy, default: tuple[Target, ...]) -> Addresses:
    """Numeric addresses of a target, each of them allowed. Raises RefusedError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        # A caller that may not reach a name must not learn whether it exists.
        policy.check_target(caller, target, target.host, default)
        raise RefusedError(Code.INVALID_ARGUMENT, f"target {target}: {error.strerror}") from error
    for _, _, _, _, address in found:
        policy.check_target(caller, target, str(address[0]), default)
    return tuple((int(family), tuple(address)) for family, _, _, _, address in found)


async def check_reachable(targets: Mapping[Endpoint, Addresses]) -> None:
    """Connect to every target once, to see that it is reached from here, and not only from the client.

    Raises RefusedError (FAILED_PRECONDITION).
    """
    await asyncio.gather(*(_reach(target, addresses) for target, addresses in targets.items()))


async def _reach(target: Endpoint, addresses: Addresses) -> None:
    failure = ""
    for family, address in addresses:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                async with asyncio.timeout(_REACH_S):
                    return await asyncio.get_running_loop().sock_connect(probe, address)
            except OSError as error:  # also when the time is up
                failure = os.strerror(error.errno) if error.errno else f"timed out after {_REACH_S:g} s"
    text = (
        f"the producer's side announces its data port {target}, which cannot be reached from the consumer's gateway "
        f"({failure}): announce another address with `ministream s2cs --advertise HOST`, or open the way to it"
    )
    raise RefusedError(Code.FAILED_PRECONDITION, text)
