"""`python -m benchmarks transport`: the native wire against bare ZeroMQ PUSH/PULL over the same path, in the same run.

For each frame size and path: goodput of both, with all features of the wire (session, credit, checksums, frames
kept until they are acknowledged), and the latency of both when frames come at half the slower one's rate. The frames
come from a separate process; runs of the two alternate, and the medians count.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import zmq

from benchmarks import machine
from benchmarks._frame_source import COLS, STAMP
from benchmarks.tunnel import tunnelled
from ministream.transport import Arrived
from ministream.transport.native import FrameReceiver

MIB = 2**20
PATHS = ("loopback", "TLS tunnel")
CREDIT_BYTES = 256 * MIB


def main(argv: list[str]) -> int:
    """Measure, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks transport")
    parser.add_argument("--sizes-mib", type=float, nargs="+", default=[0.0625, 1, 8])
    parser.add_argument("--mib", type=float, default=1024, help="in all, per run; at most 20 000 frames")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--repetitions", type=int, default=5, help="the median counts")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    rows = [
        measure(path, size, options.mib, options.repetitions) for path in options.paths for size in options.sizes_mib
    ]
    machine.show(rows)
    if options.save:
        print(machine.save("transport", argv, rows, busy=busy))
    return 0


def measure(path: str, size_mib: float, total_mib: float, repetitions: int) -> dict[str, Any]:
    """One frame size over one path."""
    frame_rows = max(1, round(size_mib * MIB / (2 * COLS)))
    frame_bytes = frame_rows * COLS * 2
    frames = max(8, min(20000, round(total_mib * MIB / frame_bytes)))
    ways = {"bare": _pull, "native": _receive}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, take in ways.items():
            with _source(path, frame_rows, frames, bare=name == "bare") as url:
                arrivals, _ = take(url, frames)
            rates[name].append((frames - 1) / (arrivals[-1] - arrivals[0]))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    row: dict[str, Any] = {"path": path, "frame_bytes": frame_bytes, "frames": frames}
    row |= {f"{name}_mib_s": rate[name] * frame_bytes / MIB for name in ways}
    row["ratio"] = rate["native"] / rate["bare"]
    for name, take in ways.items():
        row |= _latency(name, take, path, frame_rows, min(rate.values()) / 2)
    return row


def _latency(
    name: str, take: Callable[[str, int], tuple[list[float], list[float]]], path: str, frame_rows: int, rate: float
) -> dict[str, float]:
    """Milliseconds from sending a frame to receiving it, at `rate` frames per second for about two seconds."""
    frames = max(100, min(2000, int(2 * rate)))
    with _source(path, frame_rows, frames, bare=name == "bare", period_s=1 / rate) as url:
        _, delays = take(url, frames)
    quantiles = np.percentile(1000 * np.array(delays[10:]), [50, 99, 99.9])
    return {f"{name}_p{p}_ms": float(value) for p, value in zip(("50", "99", "99.9"), quantiles, strict=True)}


def _receive(url: str, frames: int) -> tuple[list[float], list[float]]:
    """Times of arrival and delays, in seconds, over the native wire."""
    arrivals, delays = [], []
    with FrameReceiver(url, credit_bytes=CREDIT_BYTES) as receiver:
        for _ in range(frames):
            event = receiver.next(60)
            assert isinstance(event, Arrived), event
            arrivals.append(time.perf_counter())
            delays.append(time.time() - event.frame.acquired_s)
            receiver.ack(event.seq)
        receiver.next(60)
    return arrivals, delays


def _pull(url: str, frames: int) -> tuple[list[float], list[float]]:
    """The same from a PULL socket."""
    arrivals, delays = [], []
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.connect(url)
        for _ in range(frames):
            stamp, _pixels = socket.recv_multipart(copy=False)
            arrivals.append(time.perf_counter())
            delays.append(time.time() - STAMP.unpack(stamp.buffer)[0])
    return arrivals, delays


@contextmanager
def _source(path: str, frame_rows: int, frames: int, *, bare: bool, period_s: float = 0.0) -> Iterator[str]:
    """A process that streams; the address at this end of the path."""
    command = [sys.executable, "-m", "benchmarks._frame_source", str(frame_rows), str(frames)]
    command += ["--period-s", str(period_s), *(["--bare"] if bare else [])]
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("tcp://")
        if path != "loopback":
            (address, *_) = stack.enter_context(tunnelled("relay", "chain+TLS", address, 1))
        yield f"tcp://{address}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
