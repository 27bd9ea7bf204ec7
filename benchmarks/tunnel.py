"""`python -m benchmarks tunnel`: the cost of a tunnel, as ratios to the same two programs without one.

    single    one gateway, plain bytes between consumer and producer
    chain     two gateways, plain bytes between them
    chain+TLS two gateways, TLS 1.3 between them; the only mode of stunnel

Goodput over `--connections` connections with the CPU seconds that a GB takes (`gateway_cpu_s_gb`: each gateway's
processes; `cpu_s_gb`: all of them and both ends), and the round trip of 64 bytes. All ways are measured in turn,
`--rounds` times; the medians count.
"""

from __future__ import annotations

import argparse
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks import machine
from benchmarks._tunnel_ends import CpuTime, Producer, goodput, round_trips
from ministream.tunnel.client import connect
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.policy import Policy, PolicySection

WAYS = [
    ("direct", ""),
    *((kind, how) for kind in ("relay", "haproxy", "nginx") for how in ("single", "chain", "chain+TLS")),
    ("stunnel", "chain+TLS"),
]


def main(argv: list[str]) -> int:
    """Run, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tunnel")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--round-trips", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["relay", "haproxy", "nginx", "stunnel"])
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    ways = [way for way in WAYS if way[0] in ("direct", *options.kinds)]
    rows = [row for count in options.connections for row in _measure_all(ways, count, options)]
    machine.show(rows)
    if options.save:
        print(machine.save("tunnel", argv, rows, busy=busy))
    return 0


def _measure_all(ways: list[tuple[str, str]], count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    with Producer() as producer:
        for _ in range(options.rounds):
            for kind, how in ways:
                with tunnelled(kind, how, producer.address, count) as listeners:
                    carried = goodput(listeners, options.seconds, CpuTime(producer))
                    found[kind, how].append((*carried, *round_trips(listeners[0], options.round_trips)))
    medians = {
        way: [statistics.median(column) for column in zip(*values, strict=True)] for way, values in found.items()
    }
    direct = medians["direct", ""]
    return [
        {
            "kind": kind,
            "way": how,
            "connections": count,
            "gbit_s": rate * 8 / 1e9,
            "of_direct": rate / direct[0],
            "gateway_cpu_s_gb": gateways / (1 if how == "single" else 2),
            "cpu_s_gb": everything,
            "p50_us": p50,
            "p99_us": p99,
            "p50_of_direct": p50 / direct[3],
        }
        for (kind, how), (rate, gateways, everything, p50, p99) in medians.items()
    ]


@contextmanager
def tunnelled(kind: str, how: str, target: str, count: int) -> Iterator[list[str]]:
    """The addresses that a consumer connects to."""
    if kind == "direct":
        yield [target] * count
        return
    with ExitStack() as stack:
        anywhere = Policy(PolicySection(targets=("127.0.0.1:*",)))
        prod, cons = (
            stack.enter_context(ControlServer(side=side, kind=kind, insecure=True, policy=anywhere))
            for side in ("PROD", "CONS")
        )
        if how == "chain+TLS":
            yield list(connect(prod.address, cons.address, None, count, targets=[target]).cons_listeners)
            return
        uid, targets = str(uuid.uuid4()), [target]
        for server in (prod, cons)[: 1 if how == "single" else 2]:
            role = "PROD" if server is prod else "CONS"
            with ControlClient(server.address, Access()) as client:
                opened = client.open(uid, role, num_conn=count, rate=0, targets=targets, timeout_s=20)
                client.update(uid, role, targets, None)
            targets = list(opened.listeners)
        yield targets
