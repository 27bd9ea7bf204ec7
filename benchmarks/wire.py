"""`python -m benchmarks wire`: what the wires of aps-mini-apps cost.

The codecs, per frame size, as the rate of the codec over the rate of a bare memcpy of the pixels into memory that is
there already. The frames come from a ring larger than the caches, as in a stream:

    encode        TImage from pixels, one copy
    round_trip    encode, and decode to an array
    library       the same encoding with flatbuffers.Builder, as the original does it
    tracemq       one worker's rows in a data reply, and out of it again

Serving, per server: four workers, of which one takes `--slow-ms` for every projection, in projections/s that the three
others get. `lock-step` waits for every worker before the next projection, as the original does.
"""

from __future__ import annotations

import argparse
import itertools
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
import zmq

from benchmarks import machine
from ministream.model import Slab
from ministream.partition import slabs
from ministream.transport import Arrived, Ended, Lost
from ministream.transport.tracemq import TraceMqReceiver, TraceMqServer
from ministream.wire import timage
from ministream.wire.timage import ImageType
from ministream.wire.tracemq import Assigned, DistributorSession, Projection, Requested, WorkerSession

MIB = 2**20
RING_MIB = 128
WORKERS = 4


def main(argv: list[str]) -> int:
    """Measure, print two tables, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks wire")
    parser.add_argument("--sizes-mib", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repetitions", type=int, default=200, help="the median counts")
    parser.add_argument("--projections", type=int, default=100, help="what each server serves")
    parser.add_argument("--slow-ms", type=float, default=20.0, help="what the slow worker takes per projection")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    codecs = [_codecs(size, options.repetitions) for size in options.sizes_mib]
    machine.show(codecs)
    print()
    serving = _serving(options.projections, options.slow_ms / 1000)
    machine.show(serving)
    if options.save:
        print(machine.save("wire", argv, [*codecs, *serving], busy=busy))
    return 0


def _codecs(size_mib: int, repetitions: int) -> dict[str, Any]:
    cols = 1024
    shape = (size_mib * MIB // 4 // cols, cols)
    frames = np.random.default_rng(1).random((max(2, RING_MIB // size_mib), *shape), dtype=np.float32)
    target = np.zeros(shape, np.float32)
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "encode": _encode,
        "round_trip": lambda pixels: timage.decode(_encode(pixels)).pixels("float32"),
        "tracemq": _conversation(shape),
        "library": _library,
    }
    copy_s, ratios = [], {}
    for name, way in ways.items():
        copying, working = _medians(lambda pixels: np.copyto(target, pixels), way, frames, repetitions)
        copy_s.append(copying)
        ratios[name] = copying / working
    return {"mib": size_mib, "memcpy_gib_per_s": size_mib / 1024 / statistics.median(copy_s), **ratios}


def _medians(
    one: Callable[[np.ndarray], Any], other: Callable[[np.ndarray], Any], frames: np.ndarray, repetitions: int
) -> tuple[float, float]:
    """Median seconds of each, taken in turns so that other load on the machine affects both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    turns = itertools.cycle(frames)
    for _ in range(repetitions):
        for way, times in zip((one, other), seconds, strict=True):
            pixels = next(turns)
            started = time.perf_counter()
            way(pixels)
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _encode(pixels: np.ndarray) -> memoryview:
    return timage.encode(pixels, image_type=ImageType.PROJECTION, seq=1, rotation=1.0, center=512.0, unique_id=1)


def _library(pixels: np.ndarray) -> bytes:
    builder = flatbuffers.Builder(0)
    tdata = builder.CreateByteVector(pixels.tobytes())
    builder.StartObject(7)
    builder.Prep(4, 12)
    for size in (pixels.shape[1], pixels.shape[0], 1):
        builder.PrependInt32(size)
    builder.PrependStructSlot(1, builder.Offset(), 0)
    builder.PrependFloat32Slot(2, 1.0, 0.0)
    builder.PrependFloat32Slot(3, 512.0, 0.0)
    builder.PrependUOffsetTRelativeSlot(6, tdata, 0)
    builder.PrependInt8Slot(5, ImageType.PROJECTION, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _conversation(shape: tuple[int, int]) -> Callable[[np.ndarray], Any]:
    """One projection from server to worker and back to where both stand as before."""
    rows, cols = shape
    server, worker = DistributorSession(peer="worker"), WorkerSession(rank=0, size=1, peer="server")
    server.receive(worker.hello())
    worker.receive(server.assign(Assigned(rows=rows, cols=cols, slab=Slab(0, rows))))
    server.receive(worker.answer())

    def exchange(pixels: np.ndarray) -> None:
        projection = Projection(projection_id=1, theta=1.0, center=512.0, pixels=pixels)
        worker.receive(server.projection(projection))
        server.receive(worker.answer())

    return exchange


def _serving(projections: int, slow_s: float) -> list[dict[str, Any]]:
    rows, cols = 64, 1024
    frames = [
        Projection(projection_id=k, theta=k / 100, center=512.0, pixels=np.full((rows, cols), k, np.float32))
        for k in range(projections)
    ]
    rates = {"lock-step": _served_in_lock_step(frames, slow_s), "ministream": _served_by_us(frames, slow_s)}
    return [
        {"server": name, "projections_per_s": rate, "times_lock_step": rate / rates["lock-step"]}
        for name, rate in rates.items()
    ]


def _served_by_us(frames: list[Projection], slow_s: float) -> float:
    rows, cols = frames[0].pixels.shape
    with TraceMqServer(f"tcp://127.0.0.1:{_free_ports()}", window=len(frames), stall_timeout_s=60) as server:
        readers = [_Reader(server.address, rank, slow_s if rank == WORKERS - 1 else 0.0) for rank in range(WORKERS)]
        server.join(rows=rows, cols=cols, timeout_s=30)
        for frame in frames:
            server.push(frame)
        server.finish()
        for reader in readers:
            reader.join()
    return _rate(readers)


def _served_in_lock_step(frames: list[Projection], slow_s: float) -> float:
    rows, cols = frames[0].pixels.shape
    context = zmq.Context()
    sockets = [context.socket(zmq.REP) for _ in range(WORKERS)]
    base = _free_ports()
    for rank, one in enumerate(sockets):
        one.bind(f"tcp://127.0.0.1:{base + rank}")
    address = f"tcp://127.0.0.1:{base}"
    readers = [_Reader(address, rank, slow_s if rank == WORKERS - 1 else 0.0) for rank in range(WORKERS)]
    parties = [DistributorSession(peer=f"worker {rank}") for rank in range(WORKERS)]
    deal = slabs(rows, WORKERS)
    for party, one, slab in zip(parties, sockets, deal, strict=True):
        party.receive(one.recv())
        one.send(party.assign(Assigned(rows=rows, cols=cols, slab=slab)))
    for frame in frames:
        for party, one in zip(parties, sockets, strict=True):
            assert party.receive(one.recv()) == Requested()
        for party, one, slab in zip(parties, sockets, deal, strict=True):
            part = Projection(projection_id=1, theta=frame.theta, center=512.0, pixels=frame.pixels[slab.slice])
            one.send(party.projection(part), copy=False)
    for party, one in zip(parties, sockets, strict=True):
        party.receive(one.recv())
        one.send(party.finish())
    for party, one, reader in zip(parties, sockets, readers, strict=True):
        party.receive(one.recv())
        reader.join()
        one.close()
    context.term()
    return _rate(readers)


def _free_ports() -> int:
    """The first of neighbouring ports for all workers, below those that the system hands out for port 0."""
    for first in range(20000, 32000, WORKERS):
        try:
            for offset in range(WORKERS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        return first
    raise SystemExit("no free ports between 20000 and 32000")


class _Reader(threading.Thread):
    """One worker; remembers when each projection came."""

    def __init__(self, address: str, rank: int, pause_s: float) -> None:
        super().__init__()
        self._address, self._rank, self.pause_s = address, rank, pause_s
        self.times: list[float] = []
        self.start()

    def run(self) -> None:
        with TraceMqReceiver(
            self._address,
            rank=self._rank,
            size=WORKERS,
            angle_unit="radians",
            connect_timeout_s=30,
            stall_timeout_s=60,
        ) as receiver:
            receiver.scan()
            while not isinstance(event := receiver.next(60), Ended | Lost):
                assert isinstance(event, Arrived)
                self.times.append(time.perf_counter())
                time.sleep(self.pause_s)


def _rate(readers: list[_Reader]) -> float:
    """Projections/s that the slowest of the workers without a pause got."""
    return min((len(one.times) - 1) / (one.times[-1] - one.times[0]) for one in readers if not one.pause_s)
