"""A reader of one FlatBuffers table that checks every offset before following it.

The reader of the `flatbuffers` package trusts its input: an offset that points outside the message ends in a
`struct.error` or in pixels of another field. A message from the network needs the checks below; layout from
https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

from ministream.errors import FrameError

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_VTABLE = struct.Struct("<HH")

_MOST_VTABLES = 64
"""The messages of one sender share their vtable, so it is checked once."""

LEFT_OUT = (0,)
"""Stands for a field that the sender omitted because it has its default."""


class Schema:
    """A table `name` whose `fields`, in slot order, are scalars and structs, and after them a vector of bytes."""

    def __init__(self, name: str, fields: Sequence[tuple[str, struct.Struct]], vector: str) -> None:
        self._name, self._vector = name, vector
        self._fields = (*fields, (vector, _U32))
        self._places = functools.lru_cache(_MOST_VTABLES)(self._checked)

    def read(self, message: memoryview) -> tuple[list[tuple[Any, ...]], memoryview]:
        """The numbers of each field of the message's root table, and the bytes of its vector, which are not copied.

        Raises FrameError, naming the field, for anything that does not lie inside the message.
        """
        size = len(message)
        if size < 4:
            raise self._bad(message, "root offset", "4 bytes at 0")
        (table,) = _U32.unpack_from(message)
        if table + 4 > size:
            raise self._bad(message, "vtable offset", f"4 bytes at {table}")
        vtable = table - _I32.unpack_from(message, table)[0]
        if vtable < 0 or vtable + 4 > size:
            raise self._bad(message, "vtable size", f"4 bytes at {vtable}")
        vtable_bytes, table_bytes = _VTABLE.unpack_from(message, vtable)
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > size:
            raise self._bad(message, "vtable", f"{vtable_bytes} bytes at {vtable}")
        if table_bytes < 4 or table + table_bytes > size:
            raise self._bad(message, "table", f"{table_bytes} bytes at {table}")
        places = self._places(bytes(message[vtable + 4 : vtable + vtable_bytes]), table_bytes)
        numbers = [unpack(message, table + place) if place else LEFT_OUT for unpack, place in places]
        (offset,), (_, place) = numbers.pop(), places[-1]
        return numbers, self._bytes(message, table + place + offset) if place else message[:0]

    def _checked(self, offsets: bytes, table_bytes: int) -> list[tuple[Callable[..., tuple[Any, ...]], int]]:
        """How to read each field and where in the table, by the vtable's `offsets`; 0 where it is left out."""
        given = [offset for (offset,) in _U16.iter_unpack(offsets)]
        places = []
        for slot, (field, layout) in enumerate(self._fields):
            place = given[slot] if slot < len(given) else 0
            if place and (place < 4 or place + layout.size > table_bytes):
                raise FrameError(
                    f"{self._name}: {field} ({layout.size} bytes at {place}) does not fit in a table of {table_bytes}"
                )
            places.append((layout.unpack_from, place))
        return places

    def _bytes(self, message: memoryview, start: int) -> memoryview:
        first = start + 4
        if first > len(message):
            raise self._bad(message, self._vector, f"4 bytes at {start}")
        (length,) = _U32.unpack_from(message, start)
        if first + length > len(message):
            raise self._bad(message, self._vector, f"{length} bytes at {first}")
        return message[first : first + length]

    def _bad(self, message: memoryview, field: str, what: str) -> FrameError:
        return FrameError(f"{self._name}: {field} ({what}) does not fit in a message of {len(message)} bytes")
