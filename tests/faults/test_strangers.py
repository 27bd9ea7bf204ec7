"""Strangers on every port while a scan is under way."""

from __future__ import annotations

import contextlib
import socket

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from tests.faults.scans import Pair, volume
from tests.integration.jobs import Job, Lab, alive

long = pytest.mark.long

RUBBISH = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a TLS record": b"\x16\x03\x01\x02\x00\x01",
    "a ZeroMQ greeting": b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48),
    "random bytes": np.random.default_rng(0).bytes(5000),
}


def ports_of(job: Job) -> set[int]:
    """Every TCP port on which a process of the job listens."""
    found = set()
    for pid in alive(job.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = psutil.Process(pid).net_connections("tcp")
            found |= {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=long)])
def test_rubbish_on_every_port_disturbs_nobody(
    jobs: Lab, credentials: list[str], undisturbed: NDArray[np.float32], rounds: int
) -> None:
    pair = Pair(jobs).tunnelled(credentials).until_streaming()
    ports = ports_of(pair.producer) | ports_of(pair.recon)
    assert len(ports) >= 4, "data and control of the producer, and a relay on either side"
    for _ in range(rounds):
        for port in ports:
            for rubbish in RUBBISH.values():
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
                    stranger.sendall(rubbish)
    pair.assert_complete()
    np.testing.assert_array_equal(volume(jobs.out), undisturbed)
