"""Coverage-guided fuzzing of the aps-mini-apps parsers; `tests/unit/test_fuzz.py` runs it for a few seconds.

    python tests/fuzz/fuzz_wire_aps.py -max_total_time=300 -max_len=4096 [CORPUS]

Good messages are laid into the corpus to begin with. Any error but the typed ones, a view past the message, or a hang
is a finding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import atheris
import numpy as np
from harness import fuzz

with atheris.instrument_imports(include=["ministream.wire"]):
    from ministream.errors import FrameError, ProtocolError
    from ministream.model import Slab
    from ministream.wire import daq, timage, tracemq

ASSIGNED = tracemq.Assigned(rows=4, cols=8, slab=Slab(1, 2))


def image(data: bytes) -> None:
    """Anything may come as a TImage."""
    try:
        decoded = timage.decode(data)
        assert len(decoded.tdata) <= len(data)
        for dtype in timage.PIXEL_DTYPES:
            assert decoded.pixels(dtype).nbytes <= len(data)
    except FrameError:
        return


def stream(data: bytes) -> None:
    """A stream of messages, each with its length before it in two bytes."""
    needs_flats = bool(data[:1] > b"\x7f")
    received = daq.DaqStream(
        pixel_dtype="uint8", angle_unit="degrees", hold_bytes=64, needs_flats=needs_flats, peer="peer"
    )
    while len(data) > 2:
        length = int.from_bytes(data[:2], "little")
        with contextlib.suppress(FrameError):
            received.receive(data[2 : 2 + length], 0.0)
        data = data[2 + length :]
    received.end()
    assert received.missing >= 0


def worker(data: bytes) -> None:
    """What a worker may get from its distributor, before and after its rows were dealt."""
    for assigned in (False, True):
        party = tracemq.WorkerSession(rank=0, size=2, peer="peer")
        party.hello()
        if assigned:
            server = tracemq.DistributorSession(peer="worker")
            server.receive(tracemq.WorkerSession(rank=0, size=2, peer="peer").hello())
            party.receive(server.assign(ASSIGNED))
            party.answer()
        try:
            event = party.receive(data)
        except ProtocolError:
            continue
        assert not isinstance(event, tracemq.Projection) or event.pixels.nbytes <= len(data)


def distributor(data: bytes) -> None:
    """What a distributor may get from a worker."""
    try:
        tracemq.DistributorSession(peer="peer").receive(data)
    except ProtocolError:
        return


TARGETS = (image, stream, worker, distributor)


def one_input(data: bytes) -> None:
    """The first byte picks the parser."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def seeds() -> Iterator[bytes]:
    """Good messages, each for its parser."""
    pixels = np.zeros((2, 8), np.uint8)
    white, projection = (
        bytes(timage.encode(pixels, image_type=kind, seq=seq, center=4.0, unique_id=seq))
        for seq, kind in enumerate((timage.ImageType.WHITE_RESET, timage.ImageType.PROJECTION))
    )
    yield b"\0" + projection
    yield b"\1" + b"".join(len(one).to_bytes(2, "little") + one for one in (white, projection, projection))
    server, party = tracemq.DistributorSession(peer="worker"), tracemq.WorkerSession(rank=0, size=2, peer="peer")
    hello = party.hello()
    server.receive(hello)
    assigned = server.assign(ASSIGNED)
    party.receive(assigned)
    server.receive(party.answer())
    rows = np.zeros((ASSIGNED.slab.rows, ASSIGNED.cols), np.float32)
    reply = server.projection(tracemq.Projection(projection_id=1, theta=0.5, center=4.0, pixels=rows))
    yield b"\2" + bytes(assigned)
    yield b"\2" + bytes(reply)
    yield b"\3" + bytes(hello)


if __name__ == "__main__":
    fuzz(one_input, seeds())
