"""Sockets without authentication that a network can reach: only where the user says that this is intended."""

from __future__ import annotations

from collections.abc import Iterable

from ministream import log
from ministream.errors import ConfigError
from ministream.tunnel.address import parse_endpoint

_LOG = log.get(__name__)


def check_open(urls: Iterable[str | None], *, allowed: bool, instead: str) -> None:
    """Log the addresses off loopback where they are `allowed`. Raises ConfigError where not; `instead` is a remedy."""
    found = [url for url in urls if url is not None and url.startswith("tcp://") and not _is_loopback(url)]
    if not found:
        return
    what = f"{', '.join(found)}: anyone who can reach this address can connect to it, without authentication"
    if not allowed:
        raise ConfigError(f"{what}. {instead}, or accept it with --open-network")
    _LOG.warning("%s", what)


def _is_loopback(url: str) -> bool:
    address = url.removeprefix("tcp://")
    # ZeroMQ's word for every interface
    return not address.startswith("*") and parse_endpoint(address, any_port=True).is_loopback
