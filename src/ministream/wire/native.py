"""The native stream's messages: what is on the wire, and the checks it passes before anyone believes it.

A message is one header and, for a frame, one payload, each a part of one ZeroMQ message. A header is the magic,
the protocol version and one of the structs below in MessagePack. Magic and version never change their place, so
two ends of different versions can always tell each other.

| sent by the receiver | |
|---|---|
| `Hello` | who I am, which scan and rows I want, from which frame, with how much credit; first on every connection |
| `Grant` | I have consumed the frames below `acked`, you may send those below `limit` |

| sent by the producer | |
|---|---|
| `ScanInfo` | the answer to `Hello`: the scan, and how its frames are packed |
| `FrameHeader` and payload | one frame |
| `End` | that was all: totals, and a digest of every header |

`Heartbeat` and `Bye` go both ways. The numbers of `Grant` are absolute, so it may be lost or repeated (the idea
of MAX_DATA in QUIC, RFC 9000 section 4.1).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Self, TypeAlias

import msgspec
import numpy as np
import xxhash
from msgspec import Meta

from ministream import partition
from ministream.errors import ConfigError, ProtocolError
from ministream.model import FrameKind, Notice, Scan, Slab

VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_NOTICES = 16

Part: TypeAlias = bytes | memoryview

_PREFIX = struct.Struct(">4sH")
_MAGIC = b"MnSt"

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Extent = Annotated[int, Meta(ge=1, le=2**20)]
Token = Annotated[str, Meta(pattern=r"\A[\w.+-]{1,32}\Z")]
Line = Annotated[str, Meta(max_length=1024, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Digest = Annotated[bytes, Meta(min_length=8, max_length=8)]


class Reason(enum.StrEnum):
    """Why an end says `Bye`."""

    DONE = "done"  # everything was sent, received and acknowledged
    LEFT = "left"  # this end stops before the scan's end, on purpose
    BUSY = "busy"  # another receiver is being served
    OTHER_SCAN = "other-scan"  # the scan asked for is not the one sent here
    NOT_HELD = "not-held"  # the frames asked for are gone, or were never there
    SHARE = "share"  # the rows cannot be shared out like that
    UNABLE = "unable"  # the receiver lacks the codec, or wants several streams
    PROTOCOL = "protocol"  # a message was malformed or out of turn


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """The rows of the ranks [first, last) where all rows are dealt to `ranks`, as `partition.slabs` deals them.

    A receiver can ask for its rows before it knows how many there are.
    """

    first: Count = 0
    last: Count = 1
    ranks: Extent = 1

    def band(self, rows: int) -> Slab:
        """The rows meant. Raises ProtocolError where that many rows cannot be shared so."""
        try:
            return partition.band(rows, self.ranks, self.first, self.last)
        except ConfigError as error:
            raise ProtocolError(str(error)) from None

    def meets(self, other: Share) -> bool:
        """Whether both can be asked for at a time: of the same deal, and no row twice."""
        return self.ranks == other.ranks and (self.last <= other.first or other.last <= self.first)


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Base of all messages; the tag is the class's name."""


class Hello(_Message, frozen=True, kw_only=True):
    """`receiver` is a random name that stays the same when the same receiver dials again.

    The frames below `resume` have arrived. `stream` of `streams` is this connection's place where a scan is
    striped over several; this version knows one. `share` is for receivers that take the rows of a scan together.
    """

    receiver: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    scan: Line = ""
    resume: Count
    limit: Count
    stream: Annotated[int, Meta(ge=0, lt=1024)] = 0
    streams: Annotated[int, Meta(ge=1, le=1024)] = 1
    codecs: Annotated[tuple[Token, ...], Meta(max_length=32)] = ("none",)
    share: Share = Share()


class ScanInfo(_Message, frozen=True, kw_only=True):
    """The scan as in `model.Scan`; the next frame is `first`; every frame is packed with `codec`.

    Frames hold the detector rows of `band`, (first row, number of rows), alone.
    """

    scan_id: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
    rows: Extent
    cols: Extent
    projections: Count
    flats: Count
    darks: Count
    dtype: Annotated[str, Meta(pattern=r"\A(\|[ui]1|[<>][ui][248]|[<>]f[248])\Z")]
    axis_col: Annotated[float, Meta(ge=-1e7, le=1e7)] | None
    pixel_size_um: Annotated[float, Meta(gt=0, le=1e9)] | None
    energy_kev: Annotated[float, Meta(gt=0, le=1e9)] | None
    sample: Line
    truth: Annotated[str, Meta(max_length=8 * 1024)] | None
    notices: Annotated[tuple[Notice, ...], Meta(max_length=MAX_NOTICES)] = ()
    first: Count = 0
    codec: Token = "none"
    band: tuple[Count, Extent]

    @classmethod
    def of(cls, scan: Scan, *, codec: str, band: Slab | None = None) -> Self:
        """Describe `scan` for the wire, and the frames that hold `band` of its rows (None: all)."""
        facts: dict[str, Any] = {name: getattr(scan, name) for name in Scan.__slots__}
        facts |= {"dtype": np.dtype(scan.dtype).str, "sample": line(scan.sample), "notices": scan.notices[:MAX_NOTICES]}
        return cls(**facts, codec=codec, band=(band.first, band.rows) if band else (0, scan.rows))

    @property
    def scan(self) -> Scan:
        """The scan described."""
        return Scan(**{name: getattr(self, name) for name in Scan.__slots__})

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.band[1], self.cols

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame's pixels."""
        return self.band[1] * self.cols * np.dtype(self.dtype).itemsize


class FrameHeader(_Message, frozen=True, kw_only=True):
    """Goes before one payload. `seq` counts the frames of a scan, of whatever kind, without gaps."""

    seq: Count
    kind: FrameKind
    index: Count
    angle_rad: float
    shape: tuple[Count, Count]
    dtype: Annotated[str, Meta(max_length=16)]
    codec: Token
    checksum: Digest | None
    acquired_s: float
    position: float = 0.0


class Totals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many frames of each kind a stream has carried, and the digest that chains their headers.

    `dropped` is what the producer left out on purpose; it is known at the end.
    """

    darks: Count = 0
    flats: Count = 0
    projections: Count = 0
    dropped: Count = 0
    digest: Digest = bytes(8)

    @property
    def frames(self) -> int:
        """Frames carried, which is the `seq` of the next one."""
        return self.darks + self.flats + self.projections

    def after(self, kind: FrameKind, header: Part) -> Totals:
        """The totals with one more frame, whose encoded header is `header`."""
        return Totals(
            darks=self.darks + (kind is FrameKind.DARK),
            flats=self.flats + (kind is FrameKind.FLAT),
            projections=self.projections + (kind is FrameKind.PROJECTION),
            digest=xxhash.xxh3_64_digest(self.digest + header),
        )


class End(_Message, frozen=True, kw_only=True):
    """Every frame of the scan has been sent."""

    totals: Totals


class Grant(_Message, frozen=True, kw_only=True):
    """The receiver has consumed the frames below `acked`, and refused `refused` so far as bad."""

    acked: Count
    limit: Count
    refused: Count = 0


class Heartbeat(_Message, frozen=True, kw_only=True):
    """I am here and have nothing else to say."""


class Bye(_Message, frozen=True, kw_only=True):
    """The connection ends here."""

    reason: Reason
    text: Line = ""


Message: TypeAlias = Hello | ScanInfo | FrameHeader | End | Grant | Heartbeat | Bye

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The header part of a message. Raises ProtocolError when it is longer than a peer accepts."""
    header = _PREFIX.pack(_MAGIC, VERSION) + _ENCODER.encode(message)
    _check_length(header)
    return header


def decode(parts: Sequence[Part]) -> Message:
    """Read the header of a received message; a payload stays untouched.

    Raises ProtocolError for anything but a well-formed message of this protocol version.
    """
    header = parts[0] if parts else b""
    _check_length(header)
    if len(header) < _PREFIX.size or header[: len(_MAGIC)] != _MAGIC:
        raise ProtocolError("a message that is not of the Mini-Stream protocol")
    version = _PREFIX.unpack_from(header)[1]
    if version != VERSION:
        raise ProtocolError(
            f"the peer speaks version {version} of the Mini-Stream protocol, this end version {VERSION}: "
            "install the same release on both sides"
        )
    try:
        message: Message = _DECODER.decode(memoryview(header)[_PREFIX.size :])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a malformed message: {line(str(error))}") from None
    expected = 2 if isinstance(message, FrameHeader) else 1
    if len(parts) != expected:
        raise ProtocolError(f"{type(message).__name__} in {len(parts)} parts, not {expected}")
    return message


def line(text: str) -> str:
    """`text` made fit for a `Line` and for a log: without control characters, not too long."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]


def _check_length(header: Part) -> None:
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(header)} bytes is longer than the {MAX_HEADER_BYTES} allowed")
