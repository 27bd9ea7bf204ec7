"""The three networks of the original's docker-compose deployment, as network namespaces of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

# Host → its addresses; two hosts of one /24 network are joined by a cable.
HOSTS = {
    "producer": ("192.168.100.10",),
    "p2cs": ("192.168.100.11", "192.168.101.10"),
    "c2cs": ("192.168.101.11", "192.168.102.10"),
    "consumer": ("192.168.102.11",),
}
CABLES = (("producer", "p2cs", "192.168.100"), ("p2cs", "c2cs", "192.168.101"), ("c2cs", "consumer", "192.168.102"))


def available() -> bool:
    """Whether this user may make network namespaces here."""
    probe = f"ms{os.getpid()}probe"
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return False
    _ip("netns", "del", probe)
    return True


class Networks:
    """The hosts, by name; no host can reach one that it shares no network with."""

    def __init__(self) -> None:
        self._prefix = f"ms{os.getpid()}"

    def on(self, host: str, command: list[str]) -> list[str]:
        """The command line that runs `command` on a host."""
        return ["nsenter", f"--net=/run/netns/{self._namespace(host)}", *command]

    def make(self) -> None:
        """Make the hosts and lay the cables."""
        for host in HOSTS:
            _ip("netns", "add", self._namespace(host))
            _ip("-n", self._namespace(host), "link", "set", "lo", "up")
        for number, (one, other, network) in enumerate(CABLES):
            ends = [f"{self._prefix}{number}{side}" for side in "ab"]
            _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for end, host in zip(ends, (one, other), strict=True):
                address = next(address for address in HOSTS[host] if address.startswith(network))
                _ip("link", "set", end, "netns", self._namespace(host))
                _ip("-n", self._namespace(host), "addr", "add", f"{address}/24", "dev", end)
                _ip("-n", self._namespace(host), "link", "set", end, "up")

    def remove(self) -> None:
        """Take away what `make` made, however far it came; the cables go with their ends."""
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", self._namespace(host)], capture_output=True, check=False)

    def _namespace(self, host: str) -> str:
        return f"{self._prefix}-{host}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def networks() -> Iterator[Networks]:
    """The three networks, gone afterwards."""
    made = Networks()
    try:
        made.make()
        yield made
    finally:
        made.remove()
