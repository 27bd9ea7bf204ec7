"""What the tunnel's tests share: a producer that echoes, a consumer, and a look at what is left over."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ministream.tunnel import credentials
from ministream.tunnel.credentials import Credentials
from tests.waiting import HANG_S

PROGRAMS = {"relay": "python3", "haproxy": "haproxy", "nginx": "nginx", "stunnel": "stunnel"}
_SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


def need(*kinds: str) -> None:
    """Skip the test where the program of a data server is not installed."""
    for kind in kinds:
        if shutil.which(PROGRAMS[kind], path=_SBIN) is None:
            pytest.skip(f"{kind} is not installed: launch/setup.sh --with-proxies")


class Echo:
    """A producer's data socket: sends back what it gets, ends when the caller ends."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def echoing(port: int = 0) -> Iterator[Echo]:
    """An echo for the length of a block."""
    echo = Echo(port)
    try:
        yield echo
    finally:
        echo.close()


def make_credentials(directory: Path, *clients: str) -> Credentials:
    """An authority with a server for loopback and the first client in it; the others in directories beside it."""
    credentials.create_authority(directory, name="test-ca", days=10)
    credentials.issue(directory, name="gw", usage="server", hosts=["127.0.0.1", "localhost"], days=1, out=directory)
    for number, name in enumerate(clients or ("operator",)):
        out = directory if number == 0 else directory.parent / name
        credentials.issue(directory, name=name, usage="client", hosts=[], days=1, out=out)
    return Credentials.load(directory)


def dial(listener: str, timeout_s: float = HANG_S) -> socket.socket:
    """Connect to `host:port`."""
    host, _, port = listener.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def ping(listener: str, message: bytes = b"ping") -> bytes:
    """One message there and back; the connection is closed in one go."""
    with dial(listener) as sock:
        return echoed(sock, message)


def echoed(sock: socket.socket, message: bytes) -> bytes:
    """Send a message, return as much as comes back, which is the message at most."""
    sock.sendall(message)
    received = b""
    while len(received) < len(message) and (chunk := sock.recv(1 << 16)):
        received += chunk
    return received


def exchange(listener: str, data: bytes, *, end_first: bool = True) -> bytes:
    """Send everything, end our direction (or not), return everything that comes back."""
    with dial(listener) as sock:

        def send() -> None:
            sock.sendall(data)
            if end_first:
                sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while (end_first or len(received) < len(data)) and (chunk := sock.recv(1 << 18)):
            received += chunk
        sender.join()
    return bytes(received)


def is_cut(sock: socket.socket, timeout_s: float = HANG_S) -> bool:
    """Whether the connection ends with a reset or an end of stream, and no byte before."""
    sock.settimeout(timeout_s)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def children() -> list[psutil.Process]:
    """This process's descendants, zombies included; without those that stay between tests."""
    return [child for child in psutil.Process().children(recursive=True) if not _stays(child)]


def _stays(process: psutil.Process) -> bool:
    """Whether it is a warm job, or the daemon that h5py's MPI starts when it is imported."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == "orted" or "tests.integration.warm_jobs" in process.cmdline()
    return False
