"""The fields of the native wire's messages, and the limits that their decoder checks; `wire.native` describes them."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Self, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from ministream import partition
from ministream.errors import ConfigError, ProtocolError
from ministream.model import FrameKind, Notice, Scan, Slab

MAX_NOTICES = 16
# Connections over which one scan may be striped.
MAX_STREAMS = 64
# Projections that one `Omission` names: a header stays far below its limit.
MAX_OMITTED = 1024
# The reason under which `Totals.drops` counts projections that never left the source.
AT_SOURCE = "source"

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Extent = Annotated[int, Meta(ge=1, le=2**20)]
Token = Annotated[str, Meta(pattern=r"\A[\w.+-]{1,32}\Z")]
Line = Annotated[str, Meta(max_length=1024, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Digest = Annotated[bytes, Meta(min_length=8, max_length=8)]


class Reason(enum.StrEnum):
    """Why an end says `Bye`."""

    DONE = "done"  # everything was sent, received and acknowledged
    LEFT = "left"  # this end stops before the scan's end, on purpose and finally
    AWAY = "away"  # this end stops now, and its job will be restarted
    BUSY = "busy"  # another receiver is being served
    OTHER_SCAN = "other-scan"  # the requested scan is not the one sent here
    NOT_HELD = "not-held"  # the requested frames are not kept any more
    SHARE = "share"  # the rows cannot be shared as requested
    UNABLE = "unable"  # the receiver lacks the codec, or requests other rows
    PROTOCOL = "protocol"  # a message was malformed or out of turn


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """The rows of the ranks [first, last) where all rows are divided among `ranks`, as by `partition.slabs`.

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
        """Whether both can be requested together: same distribution, no row twice."""
        return self.ranks == other.ranks and (self.last <= other.first or other.last <= self.first)


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Base of all messages; the tag is the class's name."""


class Hello(_Message, frozen=True, kw_only=True):
    """`receiver` is a random name that stays the same when the receiver reconnects.

    The frames below `resume` have arrived; those below `saved` are safe (None: the same), so that the job is restarted
    without them. `stream` of `streams` is this connection's place where a scan is
    striped over several; `lost` counts, for each of these, its earlier connections, all of which have ended. `share`
    is for receivers that take the rows of a scan together.
    """

    receiver: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    scan: Line = ""
    resume: Count
    saved: Count | None = None
    limit: Count
    stream: Annotated[int, Meta(ge=0, lt=MAX_STREAMS)] = 0
    streams: Annotated[int, Meta(ge=1, le=MAX_STREAMS)] = 1
    lost: Annotated[tuple[Count, ...], Meta(max_length=MAX_STREAMS)] = ()
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
    """Precedes one payload. `seq` counts the frames of a scan, of all kinds, without gaps."""

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


class Omission(_Message, frozen=True, kw_only=True):
    """Projections that were delivered to the producer and left out by its policy `reason`, the last one at UNIX time
    `at_s`; the message takes a `seq` like a frame.
    """

    seq: Count
    indices: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=MAX_OMITTED)]
    reason: Token
    at_s: float


class Totals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream has carried: frames of each kind, `omissions` as messages, and in `drops` the projections that
    these left out, by policy.
    """

    darks: Count = 0
    flats: Count = 0
    projections: Count = 0
    omissions: Count = 0
    drops: Annotated[dict[Token, Count], Meta(max_length=16)] = {}

    @property
    def frames(self) -> int:
        """Frames carried."""
        return self.darks + self.flats + self.projections

    @property
    def next_seq(self) -> int:
        """The `seq` of the next frame or omission."""
        return self.frames + self.omissions

    @property
    def dropped(self) -> int:
        """Projections that the producer left out on purpose."""
        return sum(self.drops.values())

    def after(self, entry: FrameHeader | Omission) -> Totals:
        """The totals with one more frame or omission."""
        if isinstance(entry, Omission):
            dropped = self.drops.get(entry.reason, 0) + len(entry.indices)
            return replace(self, omissions=self.omissions + 1, drops=self.drops | {entry.reason: dropped})
        return Totals(
            darks=self.darks + (entry.kind is FrameKind.DARK),
            flats=self.flats + (entry.kind is FrameKind.FLAT),
            projections=self.projections + (entry.kind is FrameKind.PROJECTION),
            omissions=self.omissions,
            drops=self.drops,
        )

    def without(self, dropped: int) -> Totals:
        """The totals with projections that the source itself left out."""
        return replace(self, drops=self.drops | {AT_SOURCE: dropped}) if dropped else self


class End(_Message, frozen=True, kw_only=True):
    """Every frame of the scan has been sent."""

    totals: Totals


class Grant(_Message, frozen=True, kw_only=True):
    """What the receiver has done with the frames so far.

    Those below `consumed` are used or refused, `refused` of them as bad; those below `acked` are safe, so that the
    producer need not keep them; those below `limit` may be sent. Of a scan that is striped, `arrived` counts the frames
    that came over each stream's newest connection, and `lost` is that of `Hello`.
    """

    acked: Count
    consumed: Count
    limit: Count
    refused: Count = 0
    arrived: Annotated[tuple[Count, ...], Meta(max_length=MAX_STREAMS)] = ()
    lost: Annotated[tuple[Count, ...], Meta(max_length=MAX_STREAMS)] = ()


class Again(_Message, frozen=True, kw_only=True):
    """Frame `seq` arrived damaged: the producer sends it again."""

    seq: Count


class Written(_Message, frozen=True, kw_only=True):
    """How the receiver's job ended: `volume` says whether one was written, `complete` whether it holds everything
    that was delivered to the producer; `text` says what is missing.
    """

    volume: bool
    complete: bool
    text: Line = ""


class Heartbeat(_Message, frozen=True, kw_only=True):
    """The sender of this message is alive; `totals` is what a producer has submitted so far."""

    totals: Totals | None = None


class Bye(_Message, frozen=True, kw_only=True):
    """The connection ends here; `totals` is what a producer that leaves has submitted."""

    reason: Reason
    text: Line = ""
    totals: Totals | None = None


Message: TypeAlias = Hello | ScanInfo | FrameHeader | Omission | End | Grant | Again | Written | Heartbeat | Bye


def line(text: str) -> str:
    """`text` sanitised for a `Line` and for a log: no control characters, limited length."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]
