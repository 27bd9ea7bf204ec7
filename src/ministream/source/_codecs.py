"""Images as areaDetector's NDPluginCodec compresses them; unpacking never takes more memory than the image does."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ministream.errors import ConfigError

# Bytes of a block of bitshuffle, and the least elements of one (`bshuf_default_block_size`).
_BLOCK_BYTES, _LEAST_BLOCK = 8192, 128
_JPEG_END = b"\xff\xd9"
# Bytes 4 to 15 of the header of Blosc: of the image, of a block, and of the compressed image with its header.
_BLOSC_SIZES = struct.Struct("<III")

Shape: TypeAlias = tuple[int, int]


def unpack(codec: str, packed: NDArray[Any], shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The image [rows, cols] of compressed bytes.

    Raises ConfigError for a codec that is unknown or whose package is missing, ValueError for bytes that are damaged
    or hold another image.
    """
    if codec not in CODECS:
        known = ", ".join(CODECS)
        raise ConfigError(
            f"images are compressed with {codec!r}, expected one of {known}. Set the compressor of NDPluginCodec to "
            "one of these, or to None"
        )
    try:
        return CODECS[codec](packed.tobytes(), shape, dtype)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"images are compressed with {codec!r}, which needs the Python package {error.name}. Install it with "
            "pip install 'ministream[pva-codecs]', or set the compressor of NDPluginCodec to zlib or None"
        ) from None
    except (RuntimeError, zlib.error, struct.error) as error:  # the packages' own errors derive from RuntimeError
        raise ValueError(str(error)) from error


def _zlib(packed: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(packed, shape[0] * shape[1] * dtype.itemsize + 1)
    if not unpacker.eof:
        raise ValueError("the compressed bytes are cut short, or hold a larger image")
    return _image(raw, shape, dtype)


def _lz4(packed: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    import imagecodecs

    return _image(imagecodecs.lz4_decode(packed, out=shape[0] * shape[1] * dtype.itemsize), shape, dtype)


def _blosc(packed: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    import imagecodecs

    size = shape[0] * shape[1] * dtype.itemsize
    unpacked, _, held = _BLOSC_SIZES.unpack_from(packed, 4)
    if held != len(packed) or unpacked != size:  # the decoder would read beyond the end
        raise ValueError(f"{len(packed)} bytes hold {held} of an image of {unpacked}, expected one of {size}")
    return _image(imagecodecs.blosc_decode(packed, out=bytearray(size)), shape, dtype)


def _bslz4(packed: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Blocks of shuffled elements, each behind its compressed length; up to seven elements at the end are bare."""
    import imagecodecs

    size, count = dtype.itemsize, shape[0] * shape[1]
    block, whole = max(_LEAST_BLOCK, _BLOCK_BYTES // size // 8 * 8), count - count % 8
    shuffled, at = bytearray(), 0
    for first in range(0, whole, block):
        (length,) = struct.unpack_from(">I", packed, at)
        at += 4 + length
        shuffled += imagecodecs.lz4_decode(packed[at - length : at], out=min(block, whole - first) * size)
    shuffled += packed[at:]
    return _image(imagecodecs.bitshuffle_decode(bytes(shuffled), itemsize=size), shape, dtype)


def _jpeg(packed: bytes, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    import imagecodecs

    if packed[-2:] != _JPEG_END:  # the decoder would make up the rest
        raise ValueError("the JPEG image is cut short")
    return _image(imagecodecs.jpeg8_decode(packed, out=np.empty(shape, np.uint8)), shape, dtype)


def _image(raw: Any, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    held, expected = np.frombuffer(raw, np.uint8), shape[0] * shape[1] * dtype.itemsize
    if held.size != expected:
        raise ValueError(f"{held.size} bytes were unpacked, expected {expected}")
    return held.view(dtype).reshape(shape)


CODECS: dict[str, Callable[[bytes, Shape, np.dtype[Any]], NDArray[Any]]] = {
    "zlib": _zlib,
    "lz4": _lz4,
    "bslz4": _bslz4,
    "blosc": _blosc,
    "jpeg": _jpeg,
}
"""By the name in `codec.name` of an NTNDArray."""
