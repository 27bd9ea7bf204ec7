"""Notices: bounded, countable, and the same behind the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ministream.errors import ProtocolError
from ministream.model import MAX_LISTED_FRAMES, Notice, notice, ranges
from ministream.wire import native
from tests.native_stream import make_scan

ODD = notice("angles-duplicate", "2 of 7 angles occur twice (1, 4)", frames=(4, 1), share=2 / 7)


def test_a_notice_counts_its_frames_and_lists_the_first() -> None:
    assert ODD.frames == (1, 4)
    assert ODD.numbers == {"share": 2 / 7, "frames": 2.0}
    many = notice("holes", "…", frames=range(1000))
    assert many.frames == tuple(range(MAX_LISTED_FRAMES))
    assert many.numbers["frames"] == 1000


@pytest.mark.parametrize(
    ("indices", "text"),
    [([], ""), ([3], "3"), ([3, 20, 21, 22], "3, 20–22"), ([1, 2, 2, 3], "1–3"), ([9, 1, 5], "1, 5, …")],
)
def test_frame_numbers_as_people_write_them(indices: list[int], text: str) -> None:
    assert ranges(indices, most=2) == text


def test_notices_of_the_source_survive_the_wire() -> None:
    scan = make_scan(notices=(ODD, notice("flats-few", "1 flat")))
    info = native.ScanInfo.of(scan, codec="none")
    decoded = native.decode([native.encode(info)])
    assert isinstance(decoded, native.ScanInfo)
    assert decoded.scan == scan


@pytest.mark.parametrize(
    "bad",
    [
        replace(ODD, code="Not A Code"),
        replace(ODD, text="two\nlines"),
        replace(ODD, text="x" * 1001),
        replace(ODD, frames=(-1,)),
        replace(ODD, frames=tuple(range(MAX_LISTED_FRAMES + 1))),
        replace(ODD, numbers={str(k): 0.0 for k in range(17)}),
    ],
    ids=["code", "control characters", "long text", "frame", "frames", "numbers"],
)
def test_a_peer_cannot_send_a_notice_without_bounds(bad: Notice) -> None:
    info = native.ScanInfo.of(make_scan(notices=(bad,)), codec="none")
    with pytest.raises(ProtocolError):
        native.decode([native.encode(info)])
