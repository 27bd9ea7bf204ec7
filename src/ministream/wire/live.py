"""Messages between a running job and its viewers, version 1: MessagePack headers, pixels as raw float32.

A viewer connects to rank 0 and asks: `Look` names the pictures that it wants and what it has already. Rank 0 answers
once it has something newer, at the latest after `IDLE_S`: a `JobState`, followed by one part per picture. Each answer
contains a new `ticket`, and the next request of that viewer must return it. A viewer that does not read therefore
receives nothing more, and at most one answer per viewer is in transit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ministream.errors import ProtocolError, VersionError
from ministream.model import Notice

VERSION = 1
IDLE_S = 1.0
"""Rank 0 answers after this time also without news, so that a viewer can tell a quiet job from a dead one."""
MAX_REQUEST_BYTES = 4096
MAX_SIDE = 1024
"""Rows and columns of a picture; larger ones are sent with every k-th pixel."""
MAX_PICTURES = 24
"""Pictures that one viewer can ask for."""

Kind: TypeAlias = Literal["z", "y", "x", "tilted", "projection", "sinogram"]
Method: TypeAlias = Literal["image", "fbp"]
Command: TypeAlias = Literal["snapshot", "finish", "iterations", "step", "axis"]
COMMANDS: tuple[Command, ...] = ("snapshot", "finish", "iterations", "step", "axis")
Phase: TypeAlias = Literal["waiting", "live", "stalled", "finished", "incomplete"]
PHASES: tuple[Phase, ...] = ("waiting", "live", "stalled", "finished", "incomplete")

Text = Annotated[str, Meta(max_length=1000)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]


class Picture(Struct, frozen=True, array_like=True):
    """What a viewer can see.

    `z`: slice `index`, [row, col]. `y`, `x`: row or column `index` of all slices, [slice, col] and [slice, row].
    `tilted`: the plane at `azimuth_deg` and `tilt_deg`, `index` pixels from the middle of the volume, as in
    `recon.planes`. These are planes `by` the algorithm's image, or by filtered back projection of the window.
    `projection`: the newest projection as line integrals, [detector row, col]; its `index` is 0. `sinogram`: detector
    row `index` of the projections in the window, in order of their angles, [projection, col].
    """

    kind: Kind
    index: Annotated[int, Meta(gt=-(2**31), lt=2**31)] = 0
    by: Method = "image"
    azimuth_deg: Annotated[float, Meta(ge=-180, le=180)] = 0.0
    tilt_deg: Annotated[float, Meta(ge=-90, le=90)] = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for angles that are no numbers, which pass the limits."""
        if not (math.isfinite(self.azimuth_deg) and math.isfinite(self.tilt_deg)):
            raise ValueError("azimuth_deg and tilt_deg: expected finite numbers")


class Look(Struct, frozen=True, kw_only=True, tag="look"):
    """Ask for the state: `state` and `updates` are the numbers that the viewer has of job `job`.

    `pictures` are those that it wants, `held` those among them that it has, as they were in its `state`.
    """

    version: int = VERSION
    ticket: Annotated[bytes, Meta(max_length=16)] = b""
    job: Annotated[str, Meta(max_length=64)] = ""
    state: Count = 0
    updates: Count = 0
    pictures: Annotated[tuple[Picture, ...], Meta(max_length=MAX_PICTURES)] = ()
    held: Annotated[tuple[Picture, ...], Meta(max_length=MAX_PICTURES)] = ()


class Steer(Struct, frozen=True, kw_only=True, tag="steer"):
    """An operator's command; `operator` is the token in the job's key file.

    `snapshot`: write one after the next update. `finish`: end the scan now, with what has arrived. `iterations`,
    `step`, `axis`: use `value` from the next update on.
    """

    version: int = VERSION
    operator: Annotated[bytes, Meta(min_length=32, max_length=32)]
    command: Command
    value: float | None = None


class Steered(Struct, frozen=True, kw_only=True, tag="steered"):
    """The answer to a command: whether it was accepted, and what happens, or why not."""

    version: int = VERSION
    accepted: bool
    denied: bool = False
    text: Text = ""


class ScanFacts(Struct, frozen=True, kw_only=True):
    """The scan: `n` rows and columns of each of `rows` slices; `projections` 0 if unknown.

    `tilted` and `fbp`: whether it has tilted planes, and planes by filtered back projection.
    """

    scan_id: str
    sample: str
    rows: int
    cols: int
    n: int
    projections: int
    pixel_size_um: float | None
    algorithm: str
    ranks: int
    threads: int
    tilted: bool = False
    fbp: bool = False


class UpdateRecord(Struct, frozen=True, array_like=True):
    """One update of the image. `residual` is |b - A x|, `quality` that against a reference, both if known."""

    index: int
    elapsed_s: float
    projections: int
    residual: float | None
    per_s: float
    behind_s: float | None
    quality: dict[str, float]


class Happening(Struct, frozen=True, array_like=True):
    """A line of the job's log: UNIX time, level, text."""

    at_s: float
    level: str
    text: str


class Shape(Struct, frozen=True, kw_only=True):
    """One picture that follows: pixels [rows, cols] of every `step`-th pixel, of the image after `update` updates.

    `angle_deg` is the angle of a projection.
    """

    picture: Picture
    update: int
    rows: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    cols: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    step: Annotated[int, Meta(ge=1)] = 1
    angle_deg: float | None = None


class JobState(Struct, frozen=True, kw_only=True):
    """The state of a job, number `number`; `updates` are those that the viewer lacks, oldest first.

    `ledger` counts projections, `losses` those dropped or refused by reason. `stages` are seconds per stage and rank.
    """

    version: int = VERSION
    ticket: bytes = b""
    job: str
    number: Count
    phase: Phase
    text: Text
    scan: ScanFacts
    elapsed_s: float
    ledger: dict[str, int]
    losses: dict[str, int]
    per_s: float
    lag: int
    behind_s: float | None
    latency_s: dict[str, float | None]
    update: int
    updates: tuple[UpdateRecord, ...] = ()
    notices: tuple[Notice, ...] = ()
    happenings: tuple[Happening, ...] = ()
    stages: tuple[dict[str, float], ...] = ()
    pictures: tuple[Shape, ...] = ()


class Version(Struct):
    """The part of every message that all versions share."""

    version: int


M = TypeVar("M", bound=Struct)
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Struct) -> bytes:
    """A header as bytes."""
    return _ENCODER.encode(message)


def decode_request(data: bytes | memoryview) -> Look | Steer:
    """A request of a viewer or an operator. Raises as `decode` does."""
    request: Look | Steer = _decoded(data, Look | Steer)
    return request


def decode(data: bytes | memoryview, kind: type[M]) -> M:
    """A header of this kind. Raises VersionError for another version, ProtocolError for anything malformed."""
    header: M = _decoded(data, kind)
    return header


def _decoded(data: bytes | memoryview, kind: Any) -> Any:
    try:
        found = msgspec.msgpack.decode(data, type=Version).version
        if found != VERSION:
            raise VersionError(
                f"live view: received version {found}, expected {VERSION}. Install the same release on both sides."
            )
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ProtocolError(
            f"live view: malformed message ({error}). Install the same release on both sides."
        ) from None


def pixels_of(shapes: Sequence[Shape], parts: Sequence[memoryview]) -> list[NDArray[np.float32]]:
    """The pixels of every picture, [rows, cols]. Raises ProtocolError where they do not fit their shape."""
    if [4 * shape.rows * shape.cols for shape in shapes] != [part.nbytes for part in parts]:
        raise ProtocolError("live view: the pixels do not fit their header. Install the same release on both sides.")
    return [
        np.frombuffer(part, np.float32).reshape(shape.rows, shape.cols)
        for shape, part in zip(shapes, parts, strict=True)
    ]
