"""The two applications at the ends of a tunnel: a producer in a separate process, and the consumer's measurements."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

import psutil

CHUNK = 1 << 20
PING = bytes(64)


class Producer:
    """`with Producer() as producer`: listens on `address`; a connection's first byte asks for a flood or an echo."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks._tunnel_ends"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        self.pid = self._process.pid
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.communicate(timeout=10)


class CpuTime:
    """CPU seconds, user and system: of the gateways' processes, and of everything together."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer.pid

    def __call__(self) -> tuple[float, float]:
        me = psutil.Process()
        found = {process.pid: _cpu_s(process) for process in (me, *me.children(recursive=True))}
        gateways = sum(used for pid, used in found.items() if pid not in (me.pid, self._producer))
        return gateways, sum(found.values())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def goodput(listeners: list[str], seconds: float, cpu: CpuTime) -> tuple[float, float, float]:
    """What arrives over one connection per listener, together, after a short warm-up.

    Bytes per second, and CPU seconds per GB: the gateways', and everything's.
    """
    counts = [0] * len(listeners)
    stop = threading.Event()
    readers = [threading.Thread(target=_drain, args=(listeners, k, counts, stop)) for k in range(len(listeners))]
    for reader in readers:
        reader.start()
    time.sleep(0.4)
    used, before, started = cpu(), sum(counts), time.perf_counter()
    time.sleep(seconds)
    moved, ended = sum(counts) - before, time.perf_counter()
    per_gb = [(after - at_first) / (moved / 1e9) for at_first, after in zip(used, cpu(), strict=True)]
    stop.set()
    for reader in readers:
        reader.join()
    return moved / (ended - started), per_gb[0], per_gb[1]


def round_trips(listener: str, count: int) -> tuple[float, float]:
    """Median and 99th percentile of a 64-byte echo, in microseconds."""
    taken = []
    with _dial(listener, b"E") as sock:
        for _ in range(count + 50):
            started = time.perf_counter()
            sock.sendall(PING)
            left = len(PING)
            while left:
                left -= len(sock.recv(left))
            taken.append(time.perf_counter() - started)
    taken = sorted(taken[50:])
    return statistics.median(taken) * 1e6, taken[int(len(taken) * 0.99)] * 1e6


def _drain(listeners: list[str], k: int, counts: list[int], stop: threading.Event) -> None:
    buffer = memoryview(bytearray(CHUNK))
    with _dial(listeners[k], b"F") as sock:
        while not stop.is_set() and (count := sock.recv_into(buffer)):
            counts[k] += count


def _dial(listener: str, wish: bytes) -> socket.socket:
    host, _, port = listener.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(wish)
    return sock


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    payload = bytes(CHUNK)
    with connection:
        try:
            if connection.recv(1) == b"F":
                while True:
                    connection.sendall(payload)
            while data := connection.recv(CHUNK):
                connection.sendall(data)
        except OSError:
            return


def _main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    _main()
