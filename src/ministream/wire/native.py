"""The native wire's messages: their fields, and the checks that every message passes before it is used.

A message is one header and, for a frame, one payload, each a part of one ZeroMQ message. A header is the magic,
the protocol version, a checksum of all that follows, and one of the structs below in MessagePack. Magic and version
never change their place, so two ends can always report different versions.

| sent by the receiver | |
|---|---|
| `Hello` | its name, the scan and rows wanted, the first frame wanted, the credit; first on every connection |
| `Grant` | frames below `consumed` are used, those below `acked` need not be kept, those below `limit` may be sent |
| `Again` | frame `seq` arrived damaged: send it again |
| `Written` | after the end: whether a volume was written, and whether every projection is in it |

| sent by the producer | |
|---|---|
| `ScanInfo` | the answer to `Hello`: the scan, and how its frames are packed |
| `FrameHeader` and payload | one frame |
| `Omission` | projections that the producer left out on purpose, in the place of their frames |
| `End` | everything was sent: the totals |

`Heartbeat` and `Bye` go both ways. The numbers of `Grant` are absolute, so it may be lost or repeated (the idea
of MAX_DATA in QUIC, RFC 9000 section 4.1).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import xxhash

from ministream.errors import ProtocolError, VersionError
from ministream.wire._messages import (
    AT_SOURCE,
    MAX_NOTICES,
    MAX_OMITTED,
    MAX_STREAMS,
    Again,
    Bye,
    End,
    FrameHeader,
    Grant,
    Heartbeat,
    Hello,
    Message,
    Omission,
    Reason,
    ScanInfo,
    Share,
    Totals,
    Written,
    line,
)

__all__ = [
    "AT_SOURCE",
    "MAX_HEADER_BYTES",
    "MAX_NOTICES",
    "MAX_OMITTED",
    "MAX_STREAMS",
    "VERSION",
    "Again",
    "Bye",
    "End",
    "FrameHeader",
    "Grant",
    "Heartbeat",
    "Hello",
    "Message",
    "Omission",
    "Part",
    "Reason",
    "ScanInfo",
    "Share",
    "Totals",
    "Written",
    "decode",
    "encode",
    "line",
]

VERSION = 6
MAX_HEADER_BYTES = 64 * 1024

Part: TypeAlias = bytes | memoryview

_PREFIX = struct.Struct(">4sH8s")
_MAGIC = b"MnSt"
# Releases with this version had no checksum; a flipped bit cannot turn ours into it: ours differs in two bits.
_UNCHECKED_VERSION = 1

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The header part of a message. Raises ProtocolError when it is longer than a peer accepts."""
    body = _ENCODER.encode(message)
    header = _PREFIX.pack(_MAGIC, VERSION, _checksum(VERSION, body)) + body
    _check_length(header)
    return header


def decode(parts: Sequence[Part]) -> Message:
    """Read the header of a received message; a payload stays untouched.

    Raises VersionError for a sound message of another protocol version, ProtocolError for anything else but a
    well-formed message of this one.
    """
    header = parts[0] if parts else b""
    _check_length(header)
    if len(header) < _PREFIX.size or header[: len(_MAGIC)] != _MAGIC:
        raise ProtocolError("received a message that is not of the Mini-Stream protocol")
    _, version, checksum = _PREFIX.unpack_from(header)
    body = memoryview(header)[_PREFIX.size :]
    # A damaged version number must not look like another release, so the checksum covers it.
    if version != _UNCHECKED_VERSION and checksum != _checksum(version, body):
        raise ProtocolError("received a message that does not match its checksum: it was damaged on the way")
    if version != VERSION:
        raise VersionError(
            f"the peer uses version {version} of the Mini-Stream protocol, this end version {VERSION}: "
            "install the same release on both sides"
        )
    try:
        message: Message = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"received a malformed message: {line(str(error))}") from None
    expected = 2 if isinstance(message, FrameHeader) else 1
    if len(parts) != expected:
        raise ProtocolError(f"received {type(message).__name__} in {len(parts)} parts, expected {expected}")
    return message


def _checksum(version: int, body: Part) -> bytes:
    return xxhash.xxh3_64_digest(body, seed=version)


def _check_length(header: Part) -> None:
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(f"received a header of {len(header)} bytes, {MAX_HEADER_BYTES} are allowed")
