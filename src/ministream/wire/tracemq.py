"""TraceMQ, the conversation between the distributor of aps-mini-apps and each of its reconstruction workers.

    worker ── info request ──▶ distributor        One request socket per worker, on port base + rank; every message
    worker ◀── info reply ──── distributor        starts with seq, type and size (uint64) and the body follows from
    worker ── data request ──▶ distributor        byte 24. `seq` grows by one per message in either direction.
    worker ◀── data reply ──── distributor  ─┐
    worker ── data request ──▶ distributor  ─┘ per projection
    worker ◀── finish ──────── distributor
    worker ── finish ────────▶ distributor

`WorkerSession` and `DistributorSession` are the two ends of one conversation, without sockets. The C programs of
aps-mini-apps send
padding after some bodies, so a message may be a few bytes longer than what it carries.
"""

from __future__ import annotations

import enum
import math
import struct
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ministream.errors import ConfigError, FrameError, ProtocolError, UsageError
from ministream.model import Slab

LARGEST_RANKS = 65536
"""Bound on what a worker may claim as its number of ranks: one TCP port each."""

LARGEST_BYTES = 2**31
"""Bound on one projection's rows for one worker."""

_PADDING = 16
_HEADER = struct.Struct("<QQQ")
_INFO_REQUEST = struct.Struct("<II")
_INFO_REPLY = struct.Struct("<IIII")
_DATA_REPLY = struct.Struct("<iff")
_PIXELS = np.dtype("<f4")


class MessageType(enum.IntEnum):
    """The `type` of the header."""

    FINISH = 0x00
    INFO_REQUEST = 0x01
    INFO_REPLY = 0x02
    DATA_REQUEST = 0x10
    DATA_REPLY = 0x20


_TYPES = {int(one): one for one in MessageType}


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerJoined:
    """A worker introduced itself as `rank` of `size`."""

    rank: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigned:
    """The distributor gave this worker its detector rows, out of `rows` in all, of `cols` columns."""

    rows: int
    cols: int
    slab: Slab


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """One projection's rows for one worker, float32 [slab rows, cols], a view of the message.

    `theta` is in the distributor's unit (radians under `--degree_to_radian`); `center` is the rotation axis in
    TomoPy's convention: ours plus 0.5.
    """

    projection_id: int
    theta: float
    center: float
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Requested:
    """The worker is ready for its next projection."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The other side reports the end."""


def split_address(url: str) -> tuple[str, int]:
    """`tcp://HOST:PORT` as `tcp://HOST` and the port, on which and above which the workers are served.

    Raises ConfigError for anything else.
    """
    host, _, port = url.rpartition(":")
    if not host.startswith("tcp://") or not port.isdecimal():
        raise ConfigError(f"{url}: write the distributor's address as tcp://HOST:PORT")
    return host, int(port)


class _Party:
    """What both ends share: the sequence number, and the framing of messages."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._seq = 0

    def _message(self, kind: MessageType, body: bytes = b"", pixels: NDArray[np.float32] | None = None) -> memoryview:
        start = _HEADER.size + len(body)
        size = start + (0 if pixels is None else pixels.nbytes)
        head = _HEADER.pack(self._seq, kind, size) + body
        self._seq += 1
        if pixels is None:
            return memoryview(head)
        message = np.empty(size, np.uint8).data
        message[:start] = head
        np.copyto(np.ndarray(pixels.shape, _PIXELS, message, start), pixels)
        return message

    def _open(self, data: bytes | memoryview, expected: tuple[MessageType, ...]) -> tuple[MessageType, memoryview]:
        """Check the header of the next message; its type and its body, padding included."""
        message = memoryview(data).cast("B")
        if len(message) < _HEADER.size:
            raise self._bad(f"a message of {len(message)} bytes is shorter than the header's {_HEADER.size}")
        seq, kind, size = _HEADER.unpack_from(message)
        if size != len(message):
            raise self._bad(f"size is {size} in a message of {len(message)} bytes")
        if kind not in expected:
            names = " or ".join(f"{one.name} {one:#04x}" for one in expected)
            raise self._bad(f"type is {kind:#x}, expected {names}")
        if seq != self._seq:
            raise self._bad(f"seq is {seq}, expected {self._seq}")
        self._seq += 1
        return _TYPES[kind], message[_HEADER.size :]

    def _sized(self, body: memoryview, nbytes: int, kind: MessageType) -> memoryview:
        if not nbytes <= len(body) <= nbytes + _PADDING:
            raise self._bad(f"the body of {kind.name} has {len(body)} bytes, expected {nbytes}")
        return body[:nbytes]

    def _bad(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self._peer}: {what}")


class WorkerSession(_Party):
    """The worker's end: `hello()`, then one `answer()` after every message that `receive()` read.

    The finish is answered last and ends the conversation.
    """

    def __init__(self, *, rank: int, size: int, peer: str) -> None:
        super().__init__(peer)
        self._rank, self._size = rank, size
        self.assigned: Assigned | None = None
        self.finished = False

    def hello(self) -> memoryview:
        """The first message: which of how many ranks this is."""
        return self._message(MessageType.INFO_REQUEST, _INFO_REQUEST.pack(self._rank, self._size))

    def receive(self, data: bytes | memoryview) -> Assigned | Projection | Finished:
        """Read the distributor's next message.

        Raises ProtocolError, naming the peer and the field, for anything malformed or out of turn; FrameError where
        only this projection is bad: it is to be answered like a good one.
        """
        if self.assigned is None:
            return self._receive_assignment(data)
        if self.finished:
            raise self._bad("a message after finish")
        kind, body = self._open(data, (MessageType.DATA_REPLY, MessageType.FINISH))
        if kind is MessageType.FINISH:
            self._sized(body, 0, kind)
            self.finished = True
            return Finished()
        return self._projection(body, self.assigned)

    def answer(self) -> memoryview:
        """The next message to send: a request for the next projection, or the finish."""
        return self._message(MessageType.FINISH if self.finished else MessageType.DATA_REQUEST)

    def _receive_assignment(self, data: bytes | memoryview) -> Assigned:
        kind, body = self._open(data, (MessageType.INFO_REPLY,))
        rows, first, own, cols = _INFO_REPLY.unpack(self._sized(body, _INFO_REPLY.size, kind))
        if own < 1 or cols < 1 or first + own > rows:
            raise self._bad(f"rows {first}…{first + own - 1} of {rows} with {cols} columns is not a valid assignment")
        if own * cols * 4 > LARGEST_BYTES:
            raise self._bad(f"{own} rows of {cols} columns are more than {LARGEST_BYTES} bytes")
        self.assigned = Assigned(rows=rows, cols=cols, slab=Slab(first, own))
        return self.assigned

    def _projection(self, body: memoryview, assigned: Assigned) -> Projection:
        shape = (assigned.slab.rows, assigned.cols)
        try:
            payload = self._sized(body, _DATA_REPLY.size + 4 * shape[0] * shape[1], MessageType.DATA_REPLY)
        except ProtocolError as error:
            raise FrameError(str(error), reason="size") from None
        projection_id, theta, center = _DATA_REPLY.unpack_from(payload)
        if not (math.isfinite(theta) and math.isfinite(center)):
            text = f"{self._peer}: theta {theta} and center {center} of projection {projection_id} must be finite"
            raise FrameError(text, reason="not-finite")
        pixels: NDArray[np.float32] = np.ndarray(shape, _PIXELS, payload, _DATA_REPLY.size)
        pixels = pixels if pixels.flags.aligned else pixels.copy()
        return Projection(projection_id=projection_id, theta=theta, center=center, pixels=pixels)


class DistributorSession(_Party):
    """The distributor's end of the conversation with one worker.

    `receive()` reads the worker's message; `assign()` answers WorkerJoined, `projection()` or `finish()`
    answers Requested.
    """

    def __init__(self, *, peer: str) -> None:
        super().__init__(peer)
        self._due: tuple[MessageType, ...] = (MessageType.INFO_REQUEST,)
        self._shape: tuple[int, int] | None = None

    def receive(self, data: bytes | memoryview) -> WorkerJoined | Requested | Finished:
        """Read the worker's next message.

        Raises ProtocolError, naming the peer and the field, for anything malformed or out of turn.
        """
        if not self._due:
            raise self._bad("a message before the previous one was answered, or after finish")
        kind, body = self._open(data, self._due)
        self._due = ()
        if kind is MessageType.INFO_REQUEST:
            rank, size = _INFO_REQUEST.unpack(self._sized(body, _INFO_REQUEST.size, kind))
            if not 0 <= rank < size <= LARGEST_RANKS:
                raise self._bad(f"rank {rank} of {size} workers is out of range")
            return WorkerJoined(rank=rank, size=size)
        self._sized(body, 0, kind)
        return Finished() if kind is MessageType.FINISH else Requested()

    def assign(self, assigned: Assigned) -> memoryview:
        """The answer to WorkerJoined: which rows the worker gets."""
        slab = assigned.slab
        self._shape = (slab.rows, assigned.cols)
        return self._reply(
            MessageType.INFO_REPLY,
            MessageType.DATA_REQUEST,
            _INFO_REPLY.pack(assigned.rows, slab.first, slab.rows, assigned.cols),
        )

    def projection(self, projection: Projection) -> memoryview:
        """An answer to Requested: the worker's rows of one projection, copied once into the message."""
        if projection.pixels.shape != self._shape:
            raise UsageError(f"{self._peer} was assigned {self._shape} pixels, not {projection.pixels.shape}")
        body = _DATA_REPLY.pack(projection.projection_id, projection.theta, projection.center)
        return self._reply(MessageType.DATA_REPLY, MessageType.DATA_REQUEST, body, projection.pixels)

    def finish(self) -> memoryview:
        """The other answer to Requested: there are no more projections."""
        return self._reply(MessageType.FINISH, MessageType.FINISH)

    def _reply(
        self, kind: MessageType, due: MessageType, body: bytes = b"", pixels: NDArray[np.float32] | None = None
    ) -> memoryview:
        if self._due:
            raise UsageError(f"{self._peer} expects no answer: its {self._due[0].name} has not arrived")
        self._due = (due,)
        return self._message(kind, body, pixels)
