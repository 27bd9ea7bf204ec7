"""`TImage`, the FlatBuffers message in which aps-mini-apps sends detector images and reconstructions.

Schema, in slot order: seq int32, dims struct {z, y, x: int32}, rotation float32, center float32, uniqueId int32,
itype int8, tdata [ubyte]. The pixels' dtype is not on the wire. Everything is little-endian.
"""

from __future__ import annotations

import enum
import math
import struct
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ministream.errors import FrameError, UsageError
from ministream.wire._flat import Schema

END_OF_DATA = b"end_data"
"""End marker that the data acquisition publishes after its last image; not a TImage."""

PIXEL_DTYPES = ("uint8", "uint16", "float32")
"""What the programs of aps-mini-apps put into `tdata`."""

_ON_THE_WIRE = {
    np.dtype(order + np.dtype(name).str[1:]): np.dtype(name).newbyteorder("<")
    for name in PIXEL_DTYPES
    for order in "<>"
}

LARGEST_BYTES = 2**31 - 1
"""A FlatBuffers message ends here: its offsets are signed 32-bit numbers."""

_INT32, _FLOAT32 = struct.Struct("<i"), struct.Struct("<f")
_SCHEMA = Schema(
    "TImage",
    (
        ("seq", _INT32),
        ("dims", struct.Struct("<iii")),
        ("rotation", _FLOAT32),
        ("center", _FLOAT32),
        ("uniqueId", _INT32),
        ("itype", struct.Struct("<b")),
    ),
    "tdata",
)

# Root offset, padding, vtable (its size, the table's size, the fields' offsets), table, padding, length of tdata.
_PREFIX = struct.Struct("<I 2x HH 7H iI i iii f f i b 3x I")
_TABLE = 24
_TDATA = _PREFIX.size - 4
_FIELD_OFFSETS = (8, 12, 24, 28, 32, 36, 4)


class ImageType(enum.IntEnum):
    """`IType` of the schema; a reset starts a new set of flats or darks with the image that carries it."""

    END = 0
    PROJECTION = 1
    WHITE = 2
    DARK = 3
    WHITE_RESET = 4
    DARK_RESET = 5


_TYPES = {int(one): one for one in ImageType}


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded message; `tdata` is a view of it.

    `dims` is (slices, rows, columns), slices 1 for a detector image. `rotation` is in the sender's unit.
    `center` is the rotation axis in TomoPy's convention: ours plus 0.5.
    """

    seq: int
    dims: tuple[int, int, int]
    rotation: float
    center: float
    unique_id: int
    image_type: ImageType
    tdata: memoryview

    def pixels(self, dtype: DTypeLike) -> NDArray[Any]:
        """The pixels [slices, rows, cols] as `dtype`; not copied, unless a small message arrived at an odd address.

        Raises FrameError that says which dtype would fit when this one does not.
        """
        wanted = np.dtype(dtype).newbyteorder("<")
        count = self.dims[0] * self.dims[1] * self.dims[2]
        if count * wanted.itemsize != len(self.tdata):
            raise FrameError(
                f"TImage seq {self.seq}: tdata holds {len(self.tdata)} bytes, but dims {self.dims} of {wanted.name} "
                f"are {count * wanted.itemsize}: {_fitting(len(self.tdata), count)}",
                reason="dtype",
            )
        pixels: NDArray[Any] = np.ndarray(self.dims, wanted, self.tdata)
        return pixels if pixels.flags.aligned else pixels.copy()


def _fitting(nbytes: int, count: int) -> str:
    fitting = [name for name in PIXEL_DTYPES if count * np.dtype(name).itemsize == nbytes]
    return f"--pixel-dtype {fitting[0]} would fit" if fitting else "no pixel dtype fits, the message is damaged"


def decode(message: bytes | memoryview) -> Image:
    """Read one TImage; the pixels stay where they are.

    Raises FrameError, naming the field, for a message that is not a TImage or whose dims are not positive.
    """
    numbers, tdata = _SCHEMA.read(memoryview(message).cast("B"))
    (seq,), dims, (rotation,), (center,), (unique_id,), (itype,) = numbers
    if len(dims) != 3 or min(dims) < 1:
        raise FrameError(f"TImage: dims {dims} must be three positive numbers (slices, rows, columns)", reason="size")
    if not (math.isfinite(rotation) and math.isfinite(center)):
        raise FrameError(f"TImage: rotation {rotation} and center {center} must be finite", reason="not-finite")
    image_type = _TYPES.get(itype)
    if image_type is None:
        known = ", ".join(f"{one:d} {one.name}" for one in ImageType)
        raise FrameError(f"TImage: itype {itype} is none of {known}", reason="kind")
    return Image(
        seq=seq,
        dims=dims,
        rotation=rotation,
        center=center,
        unique_id=unique_id,
        image_type=image_type,
        tdata=tdata,
    )


def encode(
    pixels: NDArray[Any],
    *,
    image_type: ImageType,
    seq: int,
    rotation: float = 0.0,
    center: float,
    unique_id: int,
    dtype: DTypeLike | None = None,
) -> memoryview:
    """One TImage as one contiguous buffer; the pixels [rows, cols] or [slices, rows, cols] are copied once, and
    converted to `dtype` on the way where one is given.

    The table has a fixed layout and is packed directly before the pixels: `flatbuffers.Builder` copies a vector twice.

    Raises UsageError for a dtype that the wire does not know or that cannot hold the pixels, and for more pixels
    than one message can hold.
    """
    wanted = pixels.dtype if dtype is None else np.dtype(dtype)
    wire = _ON_THE_WIRE.get(wanted)
    if wire is None or pixels.ndim not in (2, 3):
        raise UsageError(
            f"a TImage carries two or three dimensions of {', '.join(PIXEL_DTYPES)}, not {wanted.name} {pixels.shape}"
        )
    if dtype is not None and wire != pixels.dtype and wire.kind != "f" and not np.can_cast(pixels.dtype, wire, "safe"):
        raise UsageError(f"pixels of {pixels.dtype} cannot be sent as {wire.name}: choose --pixel-dtype float32")
    nbytes = pixels.size * wire.itemsize
    if _PREFIX.size + nbytes > LARGEST_BYTES:
        raise UsageError(f"{nbytes} bytes of pixels do not fit in one TImage (2 GiB): send fewer slices")
    message = np.empty(_PREFIX.size + nbytes, np.uint8)
    dims = (1, *pixels.shape)[-3:]
    _PREFIX.pack_into(
        message.data,
        0,
        _TABLE,
        4 + 2 * len(_FIELD_OFFSETS),
        _TDATA - _TABLE,
        *_FIELD_OFFSETS,
        _TABLE - 6,
        _TDATA - (_TABLE + 4),
        seq,
        *dims,
        rotation,
        center,
        unique_id,
        image_type,
        nbytes,
    )
    np.copyto(np.ndarray(pixels.shape, wire, message, _PREFIX.size), pixels, casting="same_kind")
    return message.data
