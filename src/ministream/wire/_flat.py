"""A reader of one FlatBuffers table that checks every offset before it follows it.

The reader of the `flatbuffers` package trusts its input: an offset that points outside the message ends in a
`struct.error` or in pixels of another field. A message from the network needs the checks below; layout from
https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from typing import Any

from ministream.errors import FrameError

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")


class Table:
    """The root table of a message; fields are named for the error text and addressed by their slot in the schema.

    Raises FrameError, naming the field, for anything that does not lie inside the message.
    """

    def __init__(self, message: memoryview, name: str) -> None:
        self._message = message
        self._name = name
        self._table = table = self._read(_U32, 0, "root offset")
        vtable = table - self._read(_I32, table, "vtable offset")
        vtable_bytes = self._read(_U16, vtable, "vtable size")
        self._table_bytes = self._read(_U16, vtable + 2, "table size")
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > len(message):
            raise self._bad("vtable", f"{vtable_bytes} bytes at {vtable}")
        if self._table_bytes < 4 or table + self._table_bytes > len(message):
            raise self._bad("table", f"{self._table_bytes} bytes at {table}")
        self._offsets = message[vtable + 4 : vtable + vtable_bytes]

    def values(self, slot: int, layout: struct.Struct, field: str) -> tuple[Any, ...] | None:
        """The numbers of a struct field; None where the sender left it out."""
        start = self._start(slot, layout.size, field)
        return None if start is None else layout.unpack_from(self._message, start)

    def number(self, slot: int, layout: struct.Struct, field: str) -> Any:
        """The number of a scalar field; 0, its default, where the sender left it out."""
        start = self._start(slot, layout.size, field)
        return 0 if start is None else layout.unpack_from(self._message, start)[0]

    def vector(self, slot: int, field: str) -> memoryview:
        """The bytes of a [ubyte] field, without copying them; empty where the sender left it out."""
        start = self._start(slot, 4, field)
        if start is None:
            return self._message[:0]
        vector = start + _U32.unpack_from(self._message, start)[0]
        length = self._read(_U32, vector, field)
        first = vector + 4
        if first + length > len(self._message):
            raise self._bad(field, f"{length} bytes at {first}")
        return self._message[first : first + length]

    def _start(self, slot: int, size: int, field: str) -> int | None:
        if 2 * slot >= len(self._offsets):
            return None
        offset: int = _U16.unpack_from(self._offsets, 2 * slot)[0]
        if offset == 0:
            return None
        if offset < 4 or offset + size > self._table_bytes:
            raise self._bad(field, f"{size} bytes at {self._table} + {offset}")
        return self._table + offset

    def _read(self, layout: struct.Struct, start: int, field: str) -> int:
        if start < 0 or start + layout.size > len(self._message):
            raise self._bad(field, f"{layout.size} bytes at {start}")
        value: int = layout.unpack_from(self._message, start)[0]
        return value

    def _bad(self, field: str, what: str) -> FrameError:
        return FrameError(f"{self._name}: {field} ({what}) does not fit in a message of {len(self._message)} bytes")
