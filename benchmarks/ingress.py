"""`python -m benchmarks ingress`: how fast one rank receives, from a producer's process through a tunnel with TLS.

For each frame size: bytes and frames per second, and how many cores producer, tunnel and receiver keep busy for that.
Nothing is computed with the frames; their checksums are compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from benchmarks import machine
from benchmarks._frame_source import COLS
from benchmarks.tunnel import tunnelled
from ministream.transport import Arrived, Ended
from ministream.transport.native import FrameReceiver

MIB = 2**20


def main(argv: list[str]) -> int:
    """Measure, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ingress")
    parser.add_argument("--sizes-mib", type=float, nargs="+", default=[0.0625, 1, 8])
    parser.add_argument("--mib", type=float, default=1024, help="in all, per size; at most 20 000 frames")
    parser.add_argument("--credit-mib", type=float, default=256)
    parser.add_argument("--repetitions", type=int, default=3, help="the median counts")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    rows = [measure(size, options.mib, options.credit_mib, options.repetitions) for size in options.sizes_mib]
    machine.show(rows)
    if options.save:
        print(machine.save("ingress", argv, rows, busy=busy))
    return 0


def measure(size_mib: float, total_mib: float, credit_mib: float, repetitions: int) -> dict[str, Any]:
    """One frame size."""
    frame_rows = max(1, round(size_mib * MIB / (2 * COLS)))
    frame_bytes = frame_rows * COLS * 2
    frames = max(8, min(20000, round(total_mib * MIB / frame_bytes)))
    runs = [_receive(frame_rows, frames, int(credit_mib * MIB)) for _ in range(repetitions)]
    seconds, cores = (statistics.median(column) for column in zip(*runs, strict=True))
    return {
        "frame_bytes": frame_bytes,
        "frames": frames,
        "seconds": seconds,
        "mib_s": frames * frame_bytes / seconds / MIB,
        "frames_s": frames / seconds,
        "cores": cores,
    }


def _receive(frame_rows: int, frames: int, credit_bytes: int) -> tuple[float, float]:
    """Seconds from the first frame to the last, and cores busy meanwhile."""
    with (
        _source(frame_rows, frames) as address,
        tunnelled("relay", "chain+TLS", address, 1) as listeners,
        FrameReceiver(f"tcp://{listeners[0]}", credit_bytes=credit_bytes) as receiver,
    ):
        receiver.scan()
        _take(receiver)
        began, cpu = time.perf_counter(), _cpu_s()
        for _ in range(frames - 1):
            _take(receiver)
        seconds, busy = time.perf_counter() - began, _cpu_s() - cpu
        assert isinstance(receiver.next(30), Ended)
        return seconds * frames / (frames - 1), busy / seconds


def _take(receiver: FrameReceiver) -> None:
    event = receiver.next(30)
    assert isinstance(event, Arrived), event
    receiver.ack(event.seq)


@contextmanager
def _source(frame_rows: int, frames: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks._frame_source", str(frame_rows), str(frames)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("tcp://")


def _cpu_s() -> float:
    """CPU seconds of this process and of those that it started."""
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in everyone)
