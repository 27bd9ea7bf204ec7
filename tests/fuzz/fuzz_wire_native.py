"""Coverage-guided fuzzing of the native wire, decoder and both sessions; `tests/unit/test_fuzz.py` runs it for seconds.

    python tests/fuzz/fuzz_wire_native.py -max_total_time=300 -max_len=4096 [CORPUS]

An input is a row of messages, each with its length before it in two bytes. Their checksums are set right, or nothing
would get behind them. Any error but the typed ones, a session in no state that it knows, or a hang is a finding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import atheris
import msgspec
import xxhash
from harness import fuzz

with atheris.instrument_imports(include=["ministream.wire"]):
    from ministream.errors import MinistreamError, ProtocolError
    from ministream.model import Scan
    from ministream.wire import native
    from ministream.wire.session import Patience, ReceiverSession, ReceiverState, SenderBands, SenderSession

SCAN = Scan(scan_id="scan", rows=2, cols=3, projections=4, flats=1, darks=1, dtype="<u2")
PATIENCE = Patience(first_contact_s=60, outage_s=600)
INFO = native.ScanInfo.of(SCAN, codec="none")


def messages(data: bytes) -> Iterator[list[native.Part]]:
    """The messages of one input, each under the right checksum; what is no header gets through as it is."""
    while len(data) > 2:
        length, body = int.from_bytes(data[:2], "little"), data[2:]
        body, data = body[:length], body[length:]
        seal = xxhash.xxh3_64_digest(body, seed=native.VERSION)
        header = struct.pack(">4sH8s", b"MnSt", native.VERSION, seal) + body
        yield [header, bytes(12)] if b"FrameHeader" in body else [header]


def decoder(data: bytes) -> None:
    """Anything may come as a header."""
    try:
        native.decode([data])
    except ProtocolError:
        return


def receiver(data: bytes) -> None:
    """What a receiver may get from its producer."""
    for streams in (1, 2):
        session = ReceiverSession(patience=PATIENCE, now=0.0, credit_bytes=64, max_frame_bytes=2**20, streams=streams)
        for stream in range(streams):
            session.connect(0.0, stream)
            session.receive([native.encode(INFO)], 0.0, stream)
        for now, parts in enumerate(messages(data)):
            stream = now % streams
            try:
                session.receive(parts, now, stream)
            except MinistreamError:
                if session.state is ReceiverState.OVER:
                    break
                session.connect(now, stream)
            session.outgoing(now, stream)


def sender(data: bytes) -> None:
    """What a sender may get from anyone; it takes everything and raises nothing."""
    one = SenderSession(SCAN, patience=PATIENCE, now=0.0)
    bands = SenderBands(SCAN, patience=PATIENCE, now=0.0)
    for now, parts in enumerate(messages(data)):
        for session in (one, bands):
            session.receive(b"one" if now % 3 else b"two", parts, now)
            session.outgoing(now)
    assert one.acked <= one.consumed or one.consumed == 0


TARGETS = (decoder, receiver, sender)


def one_input(data: bytes) -> None:
    """The first byte picks the parser."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def seeds() -> Iterator[bytes]:
    """Good messages, each for its parser."""
    hello = native.Hello(receiver="a" * 32, resume=0, limit=4)
    second = native.Hello(receiver="a" * 32, resume=0, limit=4, stream=1, streams=2, lost=(0, 1))
    told = native.Grant(acked=0, consumed=0, limit=4, arrived=(0, 0), lost=(0, 1))
    header = native.FrameHeader(
        seq=0, kind=3, index=0, angle_rad=0.0, shape=(2, 3), dtype="<u2", codec="none", checksum=None, acquired_s=0.0
    )
    down = (
        header,
        native.Omission(seq=1, indices=(0,), reason="decimate", at_s=0.0),
        native.End(totals=native.Totals()),
    )
    done = native.Bye(reason=native.Reason.DONE)
    up = (hello, second, told, native.Grant(acked=0, consumed=0, limit=4), native.Again(seq=0), done)
    yield b"\0" + native.encode(hello)
    for target, row in ((b"\1", down), (b"\2", up)):
        bodies = [msgspec.msgpack.encode(message) for message in row]
        yield target + b"".join(len(body).to_bytes(2, "little") + body for body in bodies)


if __name__ == "__main__":
    fuzz(one_input, seeds())
