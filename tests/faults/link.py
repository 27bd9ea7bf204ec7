"""Two hosts and the cable between them, as network namespaces of this machine.

The cable can be pulled out and put back, and it can be slow and lossy, like a path between two facilities.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

HOSTS = {"producer": "10.78.0.1", "consumer": "10.78.0.2"}
# <linux/if_tun.h>: a device whose packets a process reads and writes, without a header of its own
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_QUEUE_BYTES = 64 << 20


class Link:
    """`on(host, command)` runs a command on a host; `cut()` and `mend()` are for the cable."""

    def __init__(self) -> None:
        self._tag = f"mf{os.getpid()}"

    def on(self, host: str, command: list[str]) -> list[str]:
        """The command line that runs `command` on a host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(host)}", *command]

    def cut(self) -> None:
        """Pull the cable out: nothing arrives, and neither end is told."""
        self._set("down")

    def mend(self) -> None:
        """Put the cable back."""
        self._set("up")

    def namespace(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def device(self, host: str) -> str:
        return f"{self._tag}{host[0]}"

    def _set(self, state: str) -> None:
        # the far end: the producer's own interface stays up, as when a switch in between loses power
        ip("-n", self.namespace("consumer"), "link", "set", self.device("consumer"), state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def available() -> bool:
    """Whether this user may make network namespaces here."""
    if os.geteuid() != 0:
        return False
    probe = f"mf{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", probe)
    return made


@contextmanager
def linked(*, delay_s: float = 0.0, loss: float = 0.0) -> Iterator[Link]:
    """Both hosts and the cable. With a delay (one way) or a loss (share of the packets) this process carries them."""
    link = Link()
    with ExitStack() as undo:
        for host in HOSTS:
            ip("netns", "add", link.namespace(host))
            undo.callback(subprocess.run, ["ip", "netns", "del", link.namespace(host)], check=True)
            ip("-n", link.namespace(host), "link", "set", "lo", "up")
        if delay_s or loss:
            undo.enter_context(_carried(link, delay_s, loss))
        else:
            ends = [link.device(host) for host in HOSTS]
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for host in HOSTS:
                ip("link", "set", link.device(host), "netns", link.namespace(host))
        for host, other in (tuple(HOSTS), tuple(reversed(HOSTS))):
            namespace, device = link.namespace(host), link.device(host)
            ip("-n", namespace, "addr", "add", HOSTS[host], "peer", HOSTS[other], "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
        yield link


@contextmanager
def _carried(link: Link, delay_s: float, loss: float) -> Iterator[None]:
    """A cable whose packets a thread of this process carries, each `delay_s` late, if it is not lost."""
    ends = [_tun(link, host) for host in HOSTS]
    over = threading.Event()
    thread = threading.Thread(target=_carry, args=(ends, delay_s, loss, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for end in ends:
            os.close(end)


def _tun(link: Link, host: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", link.device(host).encode(), _IFF_TUN | _IFF_NO_PI))
    ip("link", "set", link.device(host), "netns", link.namespace(host))
    return end


def _carry(ends: list[int], delay_s: float, loss: float, over: threading.Event) -> None:
    chance = random.Random(1)
    other = dict(zip(ends, reversed(ends), strict=True))
    under_way: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}
    held = dict.fromkeys(ends, 0)
    while not over.is_set():
        now = time.monotonic()
        due = min((packets[0][0] for packets in under_way.values() if packets), default=now + 0.1)
        readable, _, _ = select.select(ends, [], [], max(0.0, min(due - now, 0.1)))
        for end in readable:
            packet = _read(end)
            if packet and chance.random() >= loss and held[end] + len(packet) <= _QUEUE_BYTES:
                under_way[end].append((time.monotonic() + delay_s, packet))
                held[end] += len(packet)
        for end, packets in under_way.items():
            while packets and packets[0][0] <= time.monotonic():
                packet = packets.popleft()[1]
                held[end] -= len(packet)
                _write(other[end], packet)


def _read(end: int) -> bytes:
    try:
        return os.read(end, 1 << 16)
    except OSError:  # the cable is out
        return b""


def _write(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError:  # the cable is out, or the host has no room: a packet is lost
        return
