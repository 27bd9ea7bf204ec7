"""ZeroMQ over TCP or Unix sockets: the producer's ROUTER, to which the receiver's DEALER connects.

ZeroMQ does framing and zero-copy queues. The session decides
whether the peer is alive and what may be sent: so a channel is one TCP connection that
never reconnects by itself, and credit, not a high-water mark, bounds what is in flight.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from ministream import bounded, hosts, log
from ministream.errors import ConfigError
from ministream.model import CurveKeys
from ministream.transport._channels import _curve
from ministream.transport._channels._guard import LOOK_S, ConnectionGuard

SCHEMES = ("tcp", "ipc")

Part: TypeAlias = bytes | memoryview

_LOG = log.get(__name__)

# Longer than the largest credit in frames, so that credit decides; short enough that a peer that sends
# requests and never reads the answers costs little memory.
_SEND_QUEUE = 8192
# A peer that ignores the credit, or sends too much, is stopped by TCP after this many messages.
_RECEIVE_QUEUE = 16
# I/O threads over which ZeroMQ spreads a listener's connections: streams are sent and encrypted in parallel.
_LISTENER_THREADS = 4
# A relay accepts before its far side does, and may never get through.
_HANDSHAKE_MS = 5000
# Notices a host that vanished within half a minute, however slow the link and however large the messages,
# which ZeroMQ's own heartbeats, queued behind a message, do not. What was sent and is not confirmed by then is given
# up with the connection, so that a dead one does not keep its frames in memory beside the next one's.
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 15,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 30_000,
}

# One channel is one connection. Forbidding ZeroMQ to reconnect (-1) can hang zmq_ctx_term in libzmq 4.3.5.
_NEVER_MS = 2**31 - 1

_ENDINGS = {
    zmq.Event.CLOSED: "connection refused, or no route to the host",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "the peer disconnected before the ZeroMQ handshake",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "the peer does not speak ZeroMQ",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "the receiver's key is not among those that the producer admits",
    zmq.Event.DISCONNECTED: "closed by the peer",
}
# With keys, a peer that has other keys disconnects silently.
_PERHAPS_THE_KEYS = "; if it is running, compare --curve and the public keys on both sides"


# The cause of a failed handshake, where ZeroMQ reports it.
_MISMATCHES: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "only one side encrypts: give --curve to both sides, or to none",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "the peer is not the producer whose key the receiver has",
}


class _Endpoint(ABC):
    """A socket with a monitor of its connections, and a file descriptor to wake it.

    `authenticator` decides which keys are admitted, where the socket admits only known ones.
    """

    authenticator: _curve.CurveAuthenticator | None = None

    def __init__(self, kind: int, max_message_bytes: int, url: str, *, encrypted: bool, threads: int = 1) -> None:
        self._url = url
        self._context = zmq.Context(threads)
        self._socket = self._context.socket(kind)
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        options = {
            zmq.SNDHWM: _SEND_QUEUE,
            zmq.RCVHWM: _RECEIVE_QUEUE,
            zmq.MAXMSGSIZE: max_message_bytes + (_curve.OVERHEAD_BYTES if encrypted else 0),
            zmq.HANDSHAKE_IVL: _HANDSHAKE_MS,
            **_KEEPALIVE,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        self._disturbed = False  # woken, or a connection ended, during the last `recv`
        self._monitor = self._socket.get_monitor_socket(sum(_ENDINGS) | zmq.Event.ACCEPTED)
        self._poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._wakeup):
            self._poller.register(source, zmq.POLLIN)

    def wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    def close(self, linger_s: float = 0.0) -> None:
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))
        if self.authenticator is not None:
            self.authenticator.socket.close(0)
        os.close(self._wakeup)
        bounded.close(self._url, self._context.term, linger_s=linger_s)

    def _receive(self, timeout_s: float) -> list[zmq.Frame] | None:
        """The next message in ZeroMQ's memory, uncopied."""
        frames = self._try_receive()
        self._disturbed = False
        if frames is None:
            ready = dict(self._poller.poll(math.ceil(timeout_s * 1000)))
            if self._wakeup in ready:
                self._disturbed = True
                os.eventfd_read(self._wakeup)
            if self.authenticator is not None and self.authenticator.socket in ready:
                self.authenticator.answer()
            frames = self._try_receive()
            if frames is None and self._monitor in ready:
                self._observe(zmq.Event((told := recv_monitor_message(self._monitor))["event"]), int(told["value"]))
        return frames

    def _observe(self, event: zmq.Event, value: int) -> None:
        if event is zmq.Event.ACCEPTED:
            self._accepted(value)
            return
        self._disturbed = True
        how = _MISMATCHES.get(value) or _ENDINGS[event]
        if event is zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
            how += _PERHAPS_THE_KEYS
        self._ended(how)

    def _accepted(self, fd: int) -> None:  # noqa: B027 only a listener accepts
        """A connection was made; its file descriptor."""

    def _try_receive(self) -> list[zmq.Frame] | None:
        try:
            return self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None

    @abstractmethod
    def _ended(self, how: str) -> None:
        """A connection has ended."""


class ZmqChannel(_Endpoint):
    """The connecting end; see `transport._channels.Channel`."""

    def __init__(self, url: str, max_message_bytes: int, keys: CurveKeys | None) -> None:
        super().__init__(zmq.DEALER, max_message_bytes, url, encrypted=keys is not None)
        self.broken = ""
        if keys is not None:
            _curve.be_client(self._socket, keys)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, _HANDSHAKE_MS)
        try:
            _check_host(url)
            self._socket.setsockopt(zmq.IPV6, int("[" in url))
            self._socket.connect(url)
        except (OSError, UnicodeError) as error:  # the latter for an empty or overlong part of a name
            self.broken = f"the host cannot be resolved: {getattr(error, 'strerror', error)}"
        except zmq.ZMQError as error:
            self.close()
            raise _wrong_address(url, error) from None

    def send(self, parts: Sequence[Part]) -> None:
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT, copy=False)
        except zmq.Again:
            self.broken = "the peer does not read"

    def recv(self, timeout_s: float) -> list[memoryview] | None:
        frames = self._receive(0.0 if self.broken else timeout_s)
        return None if frames is None else [frame.buffer for frame in frames]

    def _ended(self, how: str) -> None:
        self.broken = self.broken or how


class ZmqListener(_Endpoint):
    """The listening end; see `transport._channels.Listener`. A peer is named by ZeroMQ's id of its connection."""

    def __init__(self, url: str, max_message_bytes: int, keys: CurveKeys | None) -> None:
        super().__init__(zmq.ROUTER, max_message_bytes, url, encrypted=keys is not None, threads=_LISTENER_THREADS)
        self._told: set[str] = set()
        self.trouble = ""
        self._guard = ConnectionGuard()
        self._tcp = url.startswith("tcp:")
        self._last = b"", -1
        if keys is not None:
            _curve.be_server(self._socket, keys)
            self.authenticator = _curve.CurveAuthenticator(self._context, keys.peers)
            self._poller.register(self.authenticator.socket, zmq.POLLIN)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a disconnected peer is an error, not a silent loss
        try:
            self.address = hosts.bind_all(url, self._bind)
        except zmq.ZMQError as error:
            self.close()
            raise _wrong_address(url, error) from None

    def _bind(self, url: str) -> str:
        self._socket.setsockopt(zmq.IPV6, int("[" in url))
        self._socket.bind(url)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: bytes, parts: Sequence[Part]) -> bool:
        try:
            self._socket.send_multipart([peer, *parts], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        return True

    def recv(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        deadline = time.monotonic() + timeout_s
        frames, left_s = None, timeout_s
        while frames is None and left_s >= 0:
            frames = self._receive(min(left_s, LOOK_S) if self._guard.watching else left_s)
            for ended in self._guard.look(time.monotonic()):
                _LOG.warning("%s: connection rejected: %s", self.address, ended)
            left_s = -1 if self._disturbed else deadline - time.monotonic()
        if frames is None:
            return None
        peer = frames[0].bytes
        self._last = peer, _descriptor_of(frames[0]) if self._tcp else -1
        return peer, [frame.buffer for frame in frames[1:]]

    def admit(self, peer: bytes) -> None:
        last, fd = self._last
        if last == peer and fd >= 0:
            self._guard.admit(fd, time.monotonic())

    def _accepted(self, fd: int) -> None:
        if self._tcp:
            self._guard.accepted(fd, time.monotonic())

    def _ended(self, how: str) -> None:
        """Probes connect and leave, peers close after the end: expected. A rejected key is not."""
        rejected = how == _ENDINGS[zmq.Event.HANDSHAKE_FAILED_AUTH] and how not in self._told
        self._told.add(how)
        if how != _ENDINGS[zmq.Event.DISCONNECTED]:
            self.trouble = how
        _LOG.log(logging.WARNING if rejected else logging.DEBUG, "%s: connection ended: %s", self.address, how)


def listen(url: str, max_message_bytes: int, keys: CurveKeys | None = None) -> ZmqListener:
    """Bind a socket; port 0 takes any free one. See `transport._channels.listen`."""
    return ZmqListener(url, max_message_bytes, keys)


def dial(url: str, max_message_bytes: int, keys: CurveKeys | None = None) -> ZmqChannel:
    """Begin a connection; see `transport._channels.dial`."""
    return ZmqChannel(url, max_message_bytes, keys)


def _descriptor_of(frame: zmq.Frame) -> int:
    """The file descriptor that a frame came over; -1 where ZeroMQ knows none.

    Bytes that are no handshake pass for a ZMTP 1.0 peer's, and ZeroMQ delivers what it makes of them without one.
    """
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def _check_host(url: str) -> None:
    """ZeroMQ does not report a name that cannot be resolved. Raises OSError."""
    scheme, _, address = url.partition("://")
    host = address.rpartition(":")[0].strip("[]")
    if scheme == "tcp" and host:
        socket.getaddrinfo(host, None)


def _wrong_address(url: str, error: zmq.ZMQError) -> ConfigError:
    match error.errno:
        case errno.EADDRINUSE:
            return ConfigError(f"cannot bind {url} (already in use): choose another port, or port 0 for any free one")
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            return ConfigError(f"cannot bind {url} (not an address of this machine): choose one of its interfaces")
        case errno.EACCES:
            return ConfigError(f"cannot bind {url} (needs privileges): choose a port above 1023")
        case _:
            return ConfigError(f"{url} is not a usable address ({error.strerror}): write tcp://HOST:PORT")
