"""What TCP has counted on the open connections of listening sockets: the kernel's statistics, by sock_diag(7).

For programs that report a connection's bytes only when it has ended. Needs no privileges.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Numbers and layouts of <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h> and <linux/tcp.h>.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_INET_DIAG_INFO = 2
# Established, or ended in one direction only: TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT.
_STATES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, socket id (any)
_SOCKET = struct.Struct("=4x2s2x16s44xI")  # inet_diag_msg: source port, source address, inode
_ATTRIBUTE = struct.Struct("=HH")
_COUNTED = struct.Struct("=120xQQ")  # tcp_info: bytes acknowledged, bytes received
_REPLY_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """Connections accepted from listening sockets that are still open, and their bytes so far."""

    connections: int = 0
    received: int = 0
    acknowledged: int = 0


def count(listeners: Sequence[socket.socket]) -> Counted:
    """Sums over the connections of these listeners. Raises OSError where the kernel does not report them."""
    ends = {_end(listener) for listener in listeners}
    found = [
        (received, acknowledged)
        for family in {listener.family for listener in listeners}
        for end, received, acknowledged in _connections(family)
        if end in ends
    ]
    return Counted(
        connections=len(found), received=sum(pair[0] for pair in found), acknowledged=sum(pair[1] for pair in found)
    )


def _end(listener: socket.socket) -> tuple[bytes, bytes]:
    """Address and port as the kernel writes them."""
    host, port = listener.getsockname()[:2]
    return socket.inet_pton(listener.family, host).ljust(16, b"\0"), struct.pack("!H", port)


def _connections(family: int) -> Iterator[tuple[tuple[bytes, bytes], int, int]]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), _STATES)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(header + request)
        while True:
            reply = memoryview(netlink.recv(_REPLY_BYTES))
            while reply:
                length, kind, *_ = _HEADER.unpack_from(reply)
                message, reply = reply[_HEADER.size : length], reply[_aligned(length) :]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", message)[0], "sock_diag is refused")
                yield from _parse(message)


def _parse(message: memoryview) -> Iterator[tuple[tuple[bytes, bytes], int, int]]:
    port, address, inode = _SOCKET.unpack_from(message)
    rest = message[_SOCKET.size :]
    while rest:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        # Without an inode it belongs to no process any more.
        if kind == _INET_DIAG_INFO and inode:
            acknowledged, received = _COUNTED.unpack_from(rest, _ATTRIBUTE.size)
            yield (address, port), received, acknowledged
        rest = rest[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
