"""A scan over several connections of a tunnel, one of which is lost."""

from __future__ import annotations

import subprocess

import numpy as np
from numpy.typing import NDArray

from tests.faults.link import HOSTS, Link
from tests.faults.scans import Pair, volume
from tests.integration.jobs import Lab
from tests.waiting import eventually

STREAMS = 4


def carrying(link: Link) -> list[int]:
    """The ports of the producer's side to which the other side is connected: one for each stream, and control."""
    command = link.on("consumer", ["ss", "-Htn", "state", "established", "dst", HOSTS["producer"]])
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines())


def refuse(link: Link, port: int, what: str) -> None:
    rule = ["OUTPUT", "-p", "tcp", "--dport", str(port), "-j", "REJECT", "--reject-with", "tcp-reset"]
    subprocess.run(link.on("consumer", ["iptables", what, *rule]), check=True, capture_output=True)


def test_one_of_several_connections_of_a_tunnel_may_be_lost(
    jobs: Lab, link: Link, credentials: list[str], undisturbed: NDArray[np.float32]
) -> None:
    pair = Pair(jobs, link).tunnelled(credentials, recon=("--streams", str(STREAMS))).until_streaming()
    control = int(jobs.announced("producer", pair.producer)["control"].rpartition(":")[2])
    ports = [port for port in carrying(link) if port != control]
    assert len(ports) == STREAMS
    refuse(link, ports[1], "-A")
    eventually(lambda: ports[1] not in carrying(link))
    refuse(link, ports[1], "-D")
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)
    (streams,) = jobs.summary()["streams"]
    assert sum(stream["connections"] > 1 for stream in streams) == 1
