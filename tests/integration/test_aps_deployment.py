"""The original's deployment, host by host: producer, two gateways with their control servers, consumer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.jobs import MINISTREAM, Job, Lab
from tests.integration.networks import HOSTS, Networks, available, networks

pytestmark = pytest.mark.skipif(not available(), reason="needs root and network namespaces")

CONTROL, DATA, SYNC, PROXIES, PUBLISHED = 5000, 50000, 50001, "5074-5075", 52000

READ_PUBLISHED = f"""
import sys, zmq
from ministream.wire import timage
with zmq.Context() as context, context.socket(zmq.SUB) as socket:
    socket.subscribe(b"")
    socket.connect("tcp://127.0.0.1:{PUBLISHED}")
    if not socket.poll(240_000):
        sys.exit("nothing was published")
    print(timage.decode(socket.recv()).dims)
"""


@pytest.fixture(scope="module")
def hosts():
    with networks() as made:
        yield made


def run(hosts: Networks, host: str, *words: str) -> str:
    """A command on a host, to its end."""
    done = subprocess.run(
        hosts.on(host, [*MINISTREAM, *words]), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def gateway(jobs: Lab, hosts: Networks, host: str, side: str, outward: str, credentials: Path, *targets: str) -> Job:
    """A control server on a gateway; its data ports are on the address `outward`."""
    control = next(address for address in HOSTS[host] if address.startswith("192.168.101"))
    words = ["s2cs", "--side", side, "--listen", f"{control}:{CONTROL}", "--data-host", outward]
    words += [
        "--port-range",
        PROXIES,
        "--credentials",
        str(credentials),
        "--announce",
        str(jobs.folder / f"{host}.json"),
    ]
    for target in targets:
        words += ["--target", target]
    job = jobs.start(host, hosts.on(host, [*MINISTREAM, *words]))
    jobs.announced(host, job)
    return job


@pytest.mark.parametrize(
    ("one", "other", "reachable"),
    [("producer", "p2cs", True), ("producer", "consumer", False), ("producer", "c2cs", False), ("p2cs", "c2cs", True)],
)
def test_the_networks_are_apart(hosts, one, other, reachable) -> None:
    route = subprocess.run(hosts.on(one, ["ip", "route", "get", HOSTS[other][0]]), capture_output=True, check=False)
    assert (route.returncode == 0) is reachable


def test_a_scan_crosses_both_gateways(hosts, jobs, tooth) -> None:
    credentials = jobs.folder / "credentials"
    addresses = [word for host in ("p2cs", "c2cs") for address in HOSTS[host] for word in ("--host", address)]
    run(hosts, "c2cs", "certs", "init", str(credentials), *addresses)
    producer_host, consumer_side = HOSTS["producer"][0], HOSTS["c2cs"][1]
    targets = (f"{producer_host}:{DATA}", f"{producer_host}:{SYNC}")
    gateways = [
        gateway(jobs, hosts, "p2cs", "PROD", HOSTS["p2cs"][1], credentials, *targets),
        gateway(jobs, hosts, "c2cs", "CONS", consumer_side, credentials),
    ]
    daq = ["produce", "--mode", "1", "--simulation_file", str(tooth), "--publisher_addr", f"tcp://*:{DATA}"]
    daq += ["--synch_addr", f"tcp://*:{SYNC}", "--synch_count", "1", "--announce", str(jobs.folder / "producer.json")]
    producer = jobs.start("producer", hosts.on("producer", [*MINISTREAM, *daq]))
    jobs.announced("producer", producer)
    both = ["--prod", f"{HOSTS['p2cs'][1]}:{CONTROL}", "--cons", f"{HOSTS['c2cs'][0]}:{CONTROL}"]
    told = run(hosts, "c2cs", "connect", *both, "--credentials", str(credentials), "--num-conn", "2", "--json")
    opened = json.loads(told)
    assert opened["secure"]
    data, sync = opened["cons_listeners"]
    assert (data, sync) == (f"{consumer_side}:5074", f"{consumer_side}:5075")
    viewer = jobs.start("viewer", hosts.on("consumer", [sys.executable, "-c", READ_PUBLISHED]))
    words = ["recon", "--source-wire", "timage", "--connect", f"tcp://{data}", "--sync", f"tcp://{sync}"]
    words += ["--pixel-dtype", "float32", "-c", "296", "--window-length", "181", "--window-step", "91", "--ranks", "2"]
    words += ["--open-network", "--pub-addr", f"tcp://*:{PUBLISHED}", "--pub-freq", "1", "--out", str(jobs.out)]
    reconstruction = jobs.start("recon", hosts.on("consumer", ["mpirun", "-n", "2", *MINISTREAM, *words]))
    assert reconstruction.wait() == 0, "\n".join(job.text for job in jobs.jobs)
    assert producer.wait() == 0, producer.text
    assert viewer.wait() == 0, viewer.text
    assert "(2, 640, 640)" in viewer.text
    summary = jobs.summary()
    assert summary["complete"]
    assert summary["projections"]["used"] == 181
    listed = run(
        *(hosts, "c2cs", "sessions", "--s2cs", f"{HOSTS['c2cs'][0]}:{CONTROL}"),
        *("--credentials", str(credentials), "--json"),
    )
    assert opened["uid"] in listed
    with h5py.File(jobs.out / "recon.h5") as file:
        assert np.isfinite(file["data"][:]).all()
    for one in gateways:
        one.stop()
