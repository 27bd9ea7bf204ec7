"""A TCP connection between two ends that a test can cut, silence, or let in late: a tunnel on its bad days."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Cable:
    """Forwards TCP from its own port of 127.0.0.1 to `target`.

    `cut_after` ends a connection after so many bytes from the target, mid-frame where it falls. While `dead`, bytes
    are taken and thrown away, as when a host vanishes.
    """

    def __init__(self, target: str, *, cut_after: int | None = None) -> None:
        self.target_port = int(target.rpartition(":")[2])
        self.cut_after = cut_after
        self.dead = False
        self.connections = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def passing(self, data: bytes, sink: socket.socket) -> bytes:
        """What becomes of bytes on their way to `sink`, one of the two ends."""
        return data

    def cut(self) -> None:
        """End every connection now."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self.connections += 1
                self._start(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target_port)) as far:
            self._ends += [near, far]
            up = threading.Thread(target=self._pump, args=(near, far, None))
            up.start()
            self._pump(far, near, self.cut_after)
            up.join()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536 if limit is None else min(65536, limit - passed)):
                passed += len(data)
                if not self.dead:
                    sink.sendall(self.passing(data, sink))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Tap(Cable):
    """A cable with somebody in the middle who writes down what passes."""

    def __init__(self, target: str) -> None:
        self._passed: dict[socket.socket, bytearray] = {}
        super().__init__(target)

    @property
    def seen(self) -> bytes:
        """All that has passed, one direction of one connection after the other."""
        return b"".join(self._passed.values())

    def passing(self, data: bytes, sink: socket.socket) -> bytes:
        self._passed.setdefault(sink, bytearray()).extend(data)
        return data


class Forger(Cable):
    """A cable with somebody in the middle who changes one byte, once so many have passed."""

    def __init__(self, target: str, after: int) -> None:
        self.left = after
        super().__init__(target)

    def passing(self, data: bytes, sink: socket.socket) -> bytes:
        before, self.left = self.left, self.left - len(data)
        if not self.left <= 0 < before:
            return data
        forged = bytearray(data)
        forged[-1] ^= 1
        return bytes(forged)
