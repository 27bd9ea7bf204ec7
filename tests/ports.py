"""Ports for servers that need several in a row."""

from __future__ import annotations

import random
import socket


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that are free, below those that the system hands out for port 0."""
    while True:
        first = random.randrange(20000, 32000)
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        else:
            return first
        finally:
            for probe in probes:
                probe.close()
