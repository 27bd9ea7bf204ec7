"""The values that stages hand to each other: frozen, keyword-only, validated at the wire, not here."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray


class FrameKind(enum.IntEnum):
    """What a frame shows."""

    PROJECTION = 1
    FLAT = 2
    DARK = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One detector image on its way from the source to the window.

    `pixels` is [rows, cols] in the scan's dtype and C order. `index` counts the frames of one kind in
    acquisition order from 0; a gap means frames that were never sent. `angle_rad` is 0 for flats and
    darks. `acquired_s` is the UNIX time of the exposure, in seconds. `position` is the place in the acquisition,
    counted in projections: of a projection its own number as recorded, of a flat or dark how many projections were
    recorded before it. Where all flats have the same position they are one set.
    """

    kind: FrameKind
    index: int
    angle_rad: float
    pixels: NDArray[Any]
    acquired_s: float
    position: float = 0.0


def to_per_cm(pixel_size_um: float | None) -> float:
    """The factor from attenuation per pixel to 1/cm (1 cm is 10⁴ µm); 1 where the pixel size is not known."""
    return 1.0 if pixel_size_um is None else 1e4 / pixel_size_um


MAX_LISTED_FRAMES = 64
"""Frames that one notice lists; its number `frames` counts them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something odd about a scan that does not stop it; whoever cannot go on raises InputError instead.

    `code` is short and stable, such as `angles-duplicate`; `--accept CODE` acknowledges it. `text` is one sentence with
    the numbers, and the remedy. `numbers` are the same numbers for a script; `frames` are the indices of the
    projections concerned, the first MAX_LISTED_FRAMES of them. The limits hold where a notice crosses the wire.
    """

    code: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{1,47}\Z")]
    text: Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
    numbers: Annotated[Mapping[Annotated[str, Meta(max_length=32)], float], Meta(max_length=16)] = field(
        default_factory=dict
    )
    frames: Annotated[tuple[Annotated[int, Meta(ge=0, lt=2**53)], ...], Meta(max_length=MAX_LISTED_FRAMES)] = ()


def notice(
    code: str, text: str, *, frames: Iterable[int] = (), numbers: Mapping[str, float] | None = None, **more: float
) -> Notice:
    """A notice about any number of `frames`; where there are some, the number `frames` says how many."""
    concerned = sorted(map(int, frames))
    counted = {"frames": float(len(concerned))} if concerned else {}
    values = {name: float(value) for name, value in {**(numbers or {}), **more}.items()}
    return Notice(code=code, text=text, numbers=values | counted, frames=tuple(concerned[:MAX_LISTED_FRAMES]))


def ranges(indices: Iterable[int], most: int = 6) -> str:
    """Frame numbers as people write them, `3, 20–29`; after `most` ranges an ellipsis."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index <= spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in spans[:most]]
    return ", ".join(shown + ["…"] * (len(spans) > most))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """One acquisition: what the receiver must know before the first frame.

    `projections`, `flats` and `darks` are the counts to expect; 0 projections means not known in
    advance. `dtype` is a NumPy dtype string such as `<u2`. `axis_col` is the detector column of the
    rotation axis, pixel centres at integers; None stands for the middle, (cols - 1) / 2.
    `truth` is a source's own recipe for the ground truth (JSON text), opaque to everyone else. `notices` are what the
    source, or the producer job, found odd.
    """

    scan_id: str
    rows: int
    cols: int
    projections: int
    flats: int
    darks: int
    dtype: str
    axis_col: float | None = None
    pixel_size_um: float | None = None
    energy_kev: float | None = None
    sample: str = ""
    truth: str | None = None
    notices: tuple[Notice, ...] = ()

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame's pixels."""
        return self.rows * self.cols * np.dtype(self.dtype).itemsize

    @property
    def axis_or_middle(self) -> float:
        """The rotation axis column, the detector's middle where none is known."""
        return (self.cols - 1) / 2 if self.axis_col is None else self.axis_col


@dataclass(frozen=True, order=True, slots=True)
class Slab:
    """The contiguous detector rows [first, first + rows) that one rank owns."""

    first: int
    rows: int

    @property
    def stop(self) -> int:
        return self.first + self.rows

    @property
    def slice(self) -> slice:
        """For indexing the rows of a frame or the slices of a volume."""
        return slice(self.first, self.stop)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveKeys:
    """What one end of an encrypted stream holds: its own secret key, and the public keys of who may be at the other.

    Keys are Curve25519's, 32 bytes each.
    """

    secret: bytes = field(repr=False)
    peers: frozenset[bytes]
