"""`doctor --against` over a path whose MTU is smaller than both ends think, with nobody to tell them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ministream.tunnel import credentials
from tests.integration import networks
from tests.integration.jobs import MINISTREAM, Lab

SERVER, CLIENT = "192.168.213.2", "192.168.212.2"
SMALL_MTU = 1480
SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
from ministream import config
from ministream.app.doctor.checks import other_side
from ministream.app.doctor.finding import Subject
settled = config.load(None, {"tunnel": {"credentials": sys.argv[1]}})
found = other_side.examine(Subject(config=settled, folder=Path("."), against=sys.argv[2]))
print(json.dumps([dataclasses.asdict(one) for one in found]))
"""

pytestmark = pytest.mark.skipif(
    shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin") is None or not networks.available(),
    reason="needs iptables and the right to make network namespaces",
)


class Routed:
    """Client – router – server, one namespace each; the router's link to the server has a smaller MTU."""

    def __init__(self) -> None:
        self._prefix = f"mp{os.getpid()}"

    def on(self, host: str, *command: str) -> list[str]:
        """The command line that runs `command` on a host."""
        return ["nsenter", f"--net=/run/netns/{self._prefix}{host}", *command]

    def run(self, host: str, *command: str) -> None:
        """Run a command on a host."""
        subprocess.run(self.on(host, *command), check=True, capture_output=True)

    def make(self) -> None:
        """Lay the cables; the router drops its own messages, as many firewalls do."""
        for host in "crs":
            subprocess.run(["ip", "netns", "add", f"{self._prefix}{host}"], check=True)
            self.run(host, "ip", "link", "set", "lo", "up")
        ends = {"c": (CLIENT, "192.168.212.1"), "s": (SERVER, "192.168.213.1")}
        for host, (own, router) in ends.items():
            names = (f"{self._prefix}{host}0", f"{self._prefix}{host}1")
            subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]], check=True)
            for name, place, address in zip(names, (host, "r"), (own, router), strict=True):
                subprocess.run(["ip", "link", "set", name, "netns", f"{self._prefix}{place}"], check=True)
                self.run(place, "ip", "addr", "add", f"{address}/24", "dev", name)
                self.run(place, "ip", "link", "set", name, "up")
            self.run(host, "ip", "route", "add", "default", "via", router)
        self.run("r", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.run("r", "ip", "link", "set", f"{self._prefix}s1", "mtu", str(SMALL_MTU))
        self.run("r", "iptables", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP")

    @property
    def interface(self) -> str:
        """The client's."""
        return f"{self._prefix}c0"

    def remove(self) -> None:
        """The cables go with their ends."""
        for host in "crs":
            subprocess.run(["ip", "netns", "del", f"{self._prefix}{host}"], capture_output=True, check=False)


@pytest.fixture
def path() -> Iterator[Routed]:
    made = Routed()
    try:
        made.make()
        yield made
    finally:
        made.remove()


def found(path: Routed, own: Path) -> list[dict[str, str]]:
    """What the client's doctor says of the server."""
    words = path.on("c", sys.executable, "-c", SCRIPT, str(own), f"{SERVER}:5000")
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_path_that_swallows_large_packets_is_found_and_the_remedy_works(
    path: Routed, jobs: Lab, tmp_path: Path
) -> None:
    own = tmp_path / "d"
    credentials.create_authority(own, name="ca", days=10)
    credentials.issue(own, name="gw", usage="server", hosts=[SERVER], days=1, out=own)
    credentials.issue(own, name="jane", usage="client", hosts=[], days=1, out=own)
    announced = tmp_path / "s2cs.json"
    command = [*MINISTREAM, "s2cs", "--listen", f"{SERVER}:5000", "--credentials", str(own)]
    server = jobs.start("s2cs", path.on("s", *command, "--announce", str(announced)))
    try:
        server.until(announced.exists)
        swallowed = next(one for one in found(path, own) if one["condition"] == "failed")
        assert swallowed["subject"] in {"its certificate", "admission", "large packets"}
        remedy = swallowed["remedy"].partition("lower the MTU here: ")[2]
        path.run("c", *remedy.replace("INTERFACE", path.interface).split())
        lowered = found(path, own)
        assert {one["condition"] for one in lowered} == {"ok"}, lowered
        assert "path MTU 1280" in lowered[0]["found"]
    finally:
        server.stop()
