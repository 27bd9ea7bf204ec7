"""Coverage-guided fuzzing of the aps-mini-apps parsers; not part of the test run.

    pip install atheris
    python tests/fuzz/aps_wires.py -max_total_time=300 -max_len=4096 [CORPUS]

Any error but the typed ones, a view past the message, or a hang is a finding.
"""

from __future__ import annotations

import contextlib
import sys

import atheris

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
        party = tracemq.Worker(rank=0, size=2, peer="peer")
        party.hello()
        if assigned:
            server = tracemq.Server(peer="worker")
            server.receive(tracemq.Worker(rank=0, size=2, peer="peer").hello())
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
        tracemq.Server(peer="peer").receive(data)
    except ProtocolError:
        return


TARGETS = (image, stream, worker, distributor)


def one_input(data: bytes) -> None:
    """The first byte picks the parser."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
