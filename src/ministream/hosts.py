"""Host names in tcp:// addresses: ZeroMQ binds no names, and connects to one address of a name alone."""

from __future__ import annotations

import socket
from collections.abc import Callable

_TCP = "tcp://"


def addresses(url: str) -> list[str]:
    """The URL with each address of its host, IPv4 first.

    As it is for another scheme, for `*`, and for what does not resolve: perhaps the name of an interface.
    """
    host, _, port = url.removeprefix(_TCP).rpartition(":")
    if not url.startswith(_TCP) or host in ("*", ""):
        return [url]
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter for an empty or overlong part of a name
        return [url]
    numeric = dict.fromkeys((family is socket.AF_INET6, str(address[0])) for family, _, _, _, address in found)
    return [f"{_TCP}[{host}]:{port}" if six else f"{_TCP}{host}:{port}" for six, host in sorted(numeric)]


def bind_all(url: str, bind: Callable[[str], str]) -> str:
    """Bind every address of the URL's host that this machine has, all on one port; returns the first.

    `bind` binds one and returns it with its port. Its error for the first one is raised.
    """
    first, *others = [each for each in addresses(url) if _is_own(each)] or [url]
    bound = bind(first)
    for other in others:
        bind(f"{other.rpartition(':')[0]}:{bound.rpartition(':')[2]}")
    return bound


def _is_own(url: str) -> bool:
    """Whether the address is this machine's: /etc/hosts may name one of a family that is switched off."""
    host = url.removeprefix(_TCP).rpartition(":")[0].strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
