"""Readers of the recorded traffic in `shared/vectors` (its README gives the framing)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path


def timage_messages(shared: Path) -> list[bytes]:
    """What a subscriber received from the data acquisition of aps-mini-apps, `end_data` included."""
    data = (shared / "vectors" / "timage-daq-tooth.bin").read_bytes()
    messages, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        messages.append(data[start + 4 : start + 4 + length])
        start += 4 + length
    return messages


def tracemq_messages(shared: Path) -> Iterator[tuple[int, bool, bytes]]:
    """(worker, came from the distributor, message) of a distributor and two workers."""
    data = (shared / "vectors" / "tracemq-2ranks.bin").read_bytes()
    start = 0
    while start < len(data):
        rank, direction, length = struct.unpack_from("<IBI", data, start)
        yield rank, direction == 1, data[start + 9 : start + 9 + length]
        start += 9 + length
