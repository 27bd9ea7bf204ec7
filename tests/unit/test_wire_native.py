"""The native stream's messages: what goes out comes back, and nothing else is believed."""

from __future__ import annotations

import struct
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ministream.errors import FrameError, ProtocolError, VersionError
from ministream.model import FrameKind
from ministream.wire import native
from ministream.wire.frames import pack, unpack
from ministream.wire.native import Again, Bye, End, Grant, Heartbeat, Hello, Omission, Reason, ScanInfo, Totals, Written
from tests.native_stream import make_frame, make_scan, same

SCAN = make_scan(axis_col=2.25, pixel_size_um=0.65, energy_kev=24.9, sample="tooth", truth='{"ellipsoids": []}')
INFO = ScanInfo.of(SCAN, codec="none")
FRAME = make_frame(SCAN, FrameKind.PROJECTION, 3)
HEADER, PAYLOAD = pack(FRAME, INFO, checksum=True)
MESSAGES = [
    Hello(receiver="0123456789abcdef" * 2, scan="scan-1", resume=3, saved=1, limit=9),
    INFO,
    HEADER,
    End(totals=Totals(darks=1, flats=2, projections=3, omissions=1, drops={"decimate": 4})),
    Grant(acked=2, consumed=3, limit=9, refused=1),
    Again(seq=3),
    Omission(seq=4, indices=(1, 3, 5), reason="decimate", at_s=1.7e9),
    Written(volume=True, complete=False, text="3 projections refused"),
    Heartbeat(totals=Totals(projections=4, omissions=1, drops={"decimate": 3})),
    Bye(reason=Reason.LEFT, text="the operator stopped it"),
]


def sealed(body: bytes, version: int = native.VERSION) -> bytes:
    """A header with any body, under the right checksum."""
    return struct.pack(">4sH8s", b"MnSt", version, xxhash.xxh3_64_digest(body, seed=version)) + body


def parts_of(message: native.Message) -> list[native.Part]:
    parts: list[native.Part] = [native.encode(message)]
    return [*parts, PAYLOAD] if isinstance(message, native.FrameHeader) else parts


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: native.Message) -> None:
    assert native.decode(parts_of(message)) == message


def test_the_scan_survives_the_wire() -> None:
    assert INFO.scan == SCAN
    assert INFO.frame_bytes == SCAN.frame_bytes == 30


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        native.decode([garbage])


@given(st.binary(max_size=200))
def test_garbage_behind_the_right_prefix_is_a_protocol_error(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        native.decode([sealed(b"\xc1" + garbage)])


@given(st.sampled_from(MESSAGES), st.data())
def test_truncated_and_flipped_messages_never_raise_anything_else(message: native.Message, data: st.DataObject) -> None:
    encoded = bytearray(native.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(encoded[: data.draw(st.integers(0, len(encoded)))])
    for raw in (bytes(encoded), cut):
        try:
            decoded = native.decode([raw, PAYLOAD] if isinstance(message, native.FrameHeader) else [raw])
        except ProtocolError:
            continue
        assert decoded == message  # every byte was replaced by itself


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_field_of_wrong_type_or_range_is_a_protocol_error(message: native.Message, data: st.DataObject) -> None:
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(JUNK)
    raw = sealed(msgspec.msgpack.encode(fields))
    try:
        decoded = native.decode([raw, PAYLOAD] if isinstance(message, native.FrameHeader) else [raw])
    except ProtocolError:
        return
    may_be_nan = ("angle_rad", "acquired_s", "position")  # and NaN is unequal
    assert native.decode(parts_of(decoded)) == decoded or name in may_be_nan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 0),
        ("rows", 2**21),
        ("cols", -1),
        ("projections", 2**60),
        ("dtype", "<c8"),
        ("dtype", "O"),
        ("axis_col", float("nan")),
        ("pixel_size_um", 0.0),
        ("sample", "x" * 2000),
        ("scan_id", ""),
        ("scan_id", "a\nb"),
        ("surplus", 1),
    ],
)
def test_numbers_and_texts_are_bounded(field: str, value: object) -> None:
    raw = sealed(msgspec.msgpack.encode(msgspec.to_builtins(INFO) | {field: value}))
    with pytest.raises(ProtocolError, match="malformed"):
        native.decode([raw])


def test_an_oversized_header_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="70000 bytes"):
        native.decode([sealed(bytes(70000 - 14))])
    with pytest.raises(ProtocolError, match="are allowed"):
        native.encode(ScanInfo.of(make_scan(truth="x" * 70000), codec="none"))


@pytest.mark.parametrize(
    "raw", [sealed(b"whatever version 7 says", 7), struct.pack(">4sH", b"MnSt", 1) + b"\x81" + bytes(9)]
)
def test_another_version_is_named_beside_ours(raw: bytes) -> None:
    with pytest.raises(VersionError, match=r"version [17] .* this end version 6: install the same release"):
        native.decode([raw])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_flipped_bit_is_noticed_wherever_it_is_and_never_looks_like_another_release(message: native.Message) -> None:
    encoded = native.encode(message)
    for bit in range(8 * len(encoded)):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError) as raised:
            native.decode([bytes(damaged), PAYLOAD][: len(parts_of(message))])
        assert not isinstance(raised.value, VersionError)


@pytest.mark.parametrize("parts", [[], [native.encode(Heartbeat()), b"x"], [native.encode(HEADER)]])
def test_the_number_of_parts_must_fit(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        native.decode(parts)


def test_a_frame_survives_without_a_copy() -> None:
    frame = make_frame(SCAN, FrameKind.FLAT, 4)
    header, payload = pack(frame, INFO, checksum=True)
    assert np.shares_memory(np.frombuffer(payload, np.uint8), frame.pixels)
    arrived = unpack(header, payload, INFO)
    assert same(arrived, frame)
    assert np.shares_memory(arrived.pixels, frame.pixels)
    assert not arrived.pixels.flags.writeable


def test_pixels_are_aligned_and_contiguous_whatever_came() -> None:
    frame = make_frame(SCAN, FrameKind.FLAT, 4)
    header, payload = pack(frame, INFO, checksum=True)
    shifted = memoryview(b"x" + bytes(payload))[1:]
    arrived = unpack(header, shifted, INFO)
    assert arrived.pixels.flags.aligned
    assert same(arrived, frame)


def test_pixels_in_another_order_are_sent_in_c_order() -> None:
    frame = replace(FRAME, pixels=np.asfortranarray(FRAME.pixels + np.arange(15, dtype="<u2").reshape(3, 5)))
    assert same(unpack(*pack(frame, INFO, checksum=True), INFO), frame)


def bad(reason: str, header: native.FrameHeader, payload: native.Part = PAYLOAD, info: ScanInfo = INFO) -> None:
    with pytest.raises(FrameError) as raised:
        unpack(header, payload, info)
    assert raised.value.reason == reason
    assert "projection 3" in str(raised.value)


def test_bad_frames_are_refused_with_their_reason() -> None:
    change = msgspec.structs.replace
    bad("size", change(HEADER, shape=(5, 3)))
    bad("size", change(HEADER, shape=(2**52, 2**52)))
    bad("size", HEADER, bytes(PAYLOAD)[:-1])
    bad("size", HEADER, bytes(PAYLOAD) + b"x")
    bad("size", HEADER, b"")
    bad("dtype", change(HEADER, dtype="<f4"))
    bad("dtype", change(HEADER, dtype="nonsense"))
    bad("codec", change(HEADER, codec="zstd"))
    bad("checksum", HEADER, bytes(len(PAYLOAD)))
    bad("not-finite", change(HEADER, angle_rad=float("nan")))
    bad("not-finite", change(HEADER, acquired_s=float("inf")))
    bad("not-finite", change(HEADER, position=float("nan")))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_not_finite_is_passed_on_to_be_mended(dtype: str, value: float) -> None:
    scan = make_scan(dtype=dtype)
    info = ScanInfo.of(scan, codec="none")
    frame = make_frame(scan, FrameKind.PROJECTION, 3)
    frame.pixels[:] = -1
    frame.pixels[1, 2] = value
    header, payload = pack(frame, info, checksum=True)
    np.testing.assert_array_equal(unpack(header, payload, info).pixels, frame.pixels)


def test_a_frame_without_checksum_is_believed() -> None:
    header, _ = pack(FRAME, INFO, checksum=False)
    assert header.checksum is None
    assert not unpack(header, bytes(30), INFO).pixels.any()


@pytest.mark.parametrize(("shape", "dtype", "reason"), [((5, 3), "<u2", "size"), ((3, 5), "<f4", "dtype")])
def test_a_frame_that_does_not_fit_its_scan_is_not_sent(shape: tuple[int, int], dtype: str, reason: str) -> None:
    other = make_scan(rows=shape[0], cols=shape[1], dtype=dtype)
    with pytest.raises(FrameError) as raised:
        pack(make_frame(other, FrameKind.DARK, 1), INFO, checksum=True)
    assert raised.value.reason == reason
    assert "dark 1" in str(raised.value)


def test_a_frame_of_numpy_numbers_is_sent_and_one_without_a_place_is_not() -> None:
    counted = replace(FRAME, index=np.int64(3), angle_rad=np.float32(0.5))
    assert same(unpack(*pack(counted, INFO, checksum=True), INFO), replace(FRAME, angle_rad=0.5))
    with pytest.raises(FrameError, match="counted from 0"):
        pack(replace(FRAME, index=-1), INFO, checksum=True)


def test_totals_count_frames_by_kind_and_what_was_left_out() -> None:
    header, _ = pack(FRAME, INFO, checksum=True)
    totals = Totals().after(msgspec.structs.replace(header, kind=FrameKind.DARK)).after(header)
    totals = totals.after(Omission(seq=2, indices=(1, 2), reason="decimate", at_s=0.0))
    assert totals == Totals(darks=1, projections=1, omissions=1, drops={"decimate": 2})
    assert (totals.frames, totals.next_seq, totals.dropped) == (2, 3, 2)


def test_a_line_is_fit_for_a_log() -> None:
    assert native.line("a\nb\x1b[31m" + "x" * 5000) == "a b [31m" + "x" * 992
