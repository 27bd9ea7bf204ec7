"""Untrusted strings of the control protocol, checked before anything is done with them: uids and listeners."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ministream.tunnel.refusal import Code, RefusedError

_UID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PORT = re.compile(r"[0-9]{1,5}")
_LISTENER_CHARS = 300


@dataclass(frozen=True, order=True, slots=True)
class Endpoint:
    """A TCP address as people write it: `host:port`, an IPv6 host in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, by its spelling (nothing is resolved)."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class PortlessHost:
    """An entry of a hello without a port, as some clients send: kept like stock servers do, refused when it is used."""

    host: str

    def __str__(self) -> str:
        return self.host


def check_uid(text: str) -> str:
    """A session's uid: opaque, 1 to 64 letters, digits, `_` or `-`. Raises RefusedError (INVALID_ARGUMENT)."""
    if not _UID.fullmatch(text):
        raise RefusedError(Code.INVALID_ARGUMENT, "uid must be 1 to 64 characters out of A-Z a-z 0-9 _ -; use a UUID")
    return text


def parse_endpoint(text: str, *, any_port: bool = False) -> Endpoint:
    """Read `host:port` or `[v6]:port`; port 0 only with `any_port`. Raises RefusedError (INVALID_ARGUMENT)."""
    if len(text) > _LISTENER_CHARS:
        raise _bad(text[:40] + "…", "is too long")
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port):
        raise _bad(text, "must be host:port or [IPv6]:port")
    number = int(port)
    if number > 65535 or (number == 0 and not any_port):
        raise _bad(text, "has a port outside 1-65535")
    return Endpoint(_check_host(host, text), number)


def parse_entry(text: str) -> Endpoint | PortlessHost:
    """Read an entry of a hello, which may have no port. Raises RefusedError (INVALID_ARGUMENT)."""
    if len(text) <= _LISTENER_CHARS and (":" not in text or text.endswith("]")):
        return PortlessHost(_check_host(text, text))
    return parse_endpoint(text)


def _check_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise _bad(text, "has no valid IPv6 address in its brackets") from None
        if address.scope_id is not None:
            raise _bad(text, "has an IPv6 zone, which means nothing on another machine")
        return str(address)
    labels = host.removesuffix(".").split(".")
    # A last label of digits is an IPv4 address or one of its legacy spellings (127.1), which we do not take.
    if labels[-1][:1].isdigit():
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _bad(text, "has no valid IPv4 address") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad(text, "has no valid host name")
    return host.lower()


def _bad(text: str, why: str) -> RefusedError:
    return RefusedError(Code.INVALID_ARGUMENT, f"listener {text!r} {why}")
