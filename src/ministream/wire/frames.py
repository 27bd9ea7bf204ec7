"""Frames as header and payload. With codec `none` the payload is the pixels' own memory, at both ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ministream.errors import FrameError
from ministream.model import Frame
from ministream.wire.native import FrameHeader, Part, ScanInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """`encode` takes C-contiguous pixels; `decode` takes a payload and the number of bytes that the pixels take.

    `decode` never returns more than that, whatever the payload claims, and raises FrameError (reason `codec`)
    for what it cannot read.
    """

    encode: Callable[[NDArray[Any]], Part]
    decode: Callable[[Part, int], Part]


def _own_memory(pixels: NDArray[Any]) -> memoryview:
    return pixels.reshape(-1).view(np.uint8).data


def _unchanged(payload: Part, frame_bytes: int) -> Part:
    return payload


CODECS = {"none": Codec(encode=_own_memory, decode=_unchanged)}
"""By the name that `Hello` and `ScanInfo` carry."""


def pack(frame: Frame, info: ScanInfo, *, checksum: bool) -> tuple[FrameHeader, Part]:
    """The header of a frame, with `seq` still 0, and the payload of its rows in `info.band`; pixels are copied only
    where they are not in C order.

    Raises FrameError as `check` does.
    """
    check(frame, info)
    first, rows = info.band
    pixels = np.ascontiguousarray(frame.pixels[first : first + rows])
    payload = CODECS[info.codec].encode(pixels)
    header = FrameHeader(
        seq=0,
        kind=frame.kind,
        index=int(frame.index),
        angle_rad=float(frame.angle_rad),
        shape=info.shape,
        dtype=info.dtype,
        codec=info.codec,
        checksum=xxhash.xxh3_64_digest(payload) if checksum else None,
        acquired_s=float(frame.acquired_s),
        position=float(frame.position),
    )
    return header, payload


def check(frame: Frame, info: ScanInfo) -> None:
    """Raises FrameError (reason `size` or `dtype`) when a frame is not of the scan's shape and dtype, or has no
    proper index (reason `index`).
    """
    name = f"{frame.kind.name.lower()} {frame.index}"
    _check_form(frame.pixels.shape, (info.rows, info.cols), frame.pixels.dtype.str, info.dtype, name)
    if frame.index < 0:
        raise FrameError(f"{name}: frames are counted from 0", reason="index")


def unpack(header: FrameHeader, payload: Part, info: ScanInfo) -> Frame:
    """The frame of a received header and payload. Its pixels [rows, cols] are read-only.

    They are copied only where the payload is not aligned for their dtype, as ZeroMQ leaves messages of less
    than 8 KiB.

    Raises FrameError with the reason `size`, `dtype`, `codec`, `checksum` or `not-finite`; the last is about
    the angle and the times alone: pixels that are NaN or infinite are corrected later, not rejected.
    """
    name = f"{header.kind.name.lower()} {header.index}"
    _check_form(header.shape, info.shape, header.dtype, info.dtype, name)
    if header.codec != info.codec:
        raise FrameError(f"{name} is packed with {header.codec!r}, the scan with {info.codec!r}", reason="codec")
    raw = CODECS[info.codec].decode(payload, info.frame_bytes)
    if len(raw) != info.frame_bytes:
        raise FrameError(f"{name} holds {len(raw)} bytes, its shape takes {info.frame_bytes}", reason="size")
    if header.checksum is not None and header.checksum != xxhash.xxh3_64_digest(payload):
        raise FrameError(f"{name} does not match its checksum: it was damaged on the way", reason="checksum")
    pixels = np.frombuffer(raw, info.dtype).reshape(info.shape)
    if not pixels.flags.aligned:
        pixels = pixels.copy()
    pixels.flags.writeable = False
    for field, value in (("angle", header.angle_rad), ("time", header.acquired_s), ("position", header.position)):
        if not math.isfinite(value):
            raise FrameError(f"{name} has the {field} {value}, expected a finite number", reason="not-finite")
    return Frame(
        kind=header.kind,
        index=header.index,
        angle_rad=header.angle_rad,
        pixels=pixels,
        acquired_s=header.acquired_s,
        position=header.position,
    )


def _check_form(shape: tuple[int, ...], due: tuple[int, int], dtype: str, dtype_due: str, name: str) -> None:
    if shape != due:
        raise FrameError(f"{name} has the shape {shape}, the scan's is {due}", reason="size")
    if dtype != dtype_due:
        raise FrameError(f"{name} has the dtype {dtype!r}, the scan's is {dtype_due!r}", reason="dtype")
