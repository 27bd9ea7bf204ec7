"""What the tests of the native stream share: a small scan, its frames, and a link that can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ministream.model import Frame, FrameKind, Scan
from ministream.wire import native


def make_scan(**changes: Any) -> Scan:
    """A scan of 2 darks, 3 flats and 7 projections of 3 × 5 pixels."""
    facts: dict[str, Any] = {
        "scan_id": "scan-1",
        "rows": 3,
        "cols": 5,
        "projections": 7,
        "flats": 3,
        "darks": 2,
        "dtype": "<u2",
    }
    return Scan(**facts | changes)


def make_frame(scan: Scan, kind: FrameKind, index: int) -> Frame:
    """A frame whose pixels tell its kind and index."""
    pixels = np.full((scan.rows, scan.cols), (60 * kind + index) % 251, scan.dtype)
    angle = 0.01 * index if kind is FrameKind.PROJECTION else 0.0
    facts = {"angle_rad": angle, "acquired_s": 1.7e9 + index, "position": index / 2}
    return Frame(kind=kind, index=index, pixels=pixels, **facts)


def make_frames(scan: Scan) -> Iterator[Frame]:
    """All frames of a scan: darks, flats, projections."""
    for kind, count in ((FrameKind.DARK, scan.darks), (FrameKind.FLAT, scan.flats)):
        yield from (make_frame(scan, kind, index) for index in range(count))
    yield from (make_frame(scan, FrameKind.PROJECTION, index) for index in range(scan.projections))


def same(frame: Frame, other: Frame) -> bool:
    """Whether two frames agree in everything."""
    facts = ("kind", "index", "angle_rad", "acquired_s", "position")
    return all(getattr(frame, f) == getattr(other, f) for f in facts) and np.array_equal(frame.pixels, other.pixels)


def flipped(part: native.Part, bit: int) -> bytes:
    """The same bytes with one bit changed."""
    changed = bytearray(part)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    return bytes(changed)
