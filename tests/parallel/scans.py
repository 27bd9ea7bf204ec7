"""A small scan for jobs that run inside the ranks of a test."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from ministream.model import FrameKind, Scan
from ministream.parallel.mpi import Comm
from ministream.transport.native import FrameSender
from tests.native_stream import make_frames, make_scan

ROWS, N = 6, 16


def scan(**changes) -> Scan:
    return make_scan(**{"rows": ROWS, "cols": N, "projections": 8, **changes})


def frames(of: Scan) -> Iterator:
    rng = np.random.default_rng(4)
    for frame in make_frames(of):
        level = {FrameKind.DARK: 10, FrameKind.FLAT: 1000, FrameKind.PROJECTION: 500}[frame.kind]
        frame.pixels[:] = level + rng.integers(0, 10, frame.pixels.shape)
        turned = frame.index / of.projections if frame.kind is FrameKind.PROJECTION else 0.0
        yield replace(frame, angle_rad=math.pi * turned)


@contextmanager
def producing(
    comm: Comm, of: Scan, ready: Callable[[], None] = lambda: None, *, left_out: Sequence[int] = ()
) -> Iterator[str]:
    """The address at which rank 0 sends a scan, on every rank; the first frame follows `ready`.

    `left_out` are projections that the producer dropped as the oldest.
    """
    if comm.rank:
        yield comm.bcast("")
        return
    with FrameSender("tcp://127.0.0.1:0", of) as sender:

        def send() -> None:
            ready()
            for frame in frames(of):
                if frame.kind is FrameKind.PROJECTION and frame.index in left_out:
                    sender.omit([frame.index], reason="drop-oldest", at_s=frame.acquired_s)
                else:
                    sender.send(frame)
            sender.finish()

        thread = threading.Thread(target=send)
        thread.start()
        yield comm.bcast(sender.address)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def process():
    """A job takes over what signals do, and the log."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    logger = logging.getLogger("ministream")
    handlers, level = list(logger.handlers), logger.level
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logger.handlers[:], logger.propagate = handlers, True
    logger.setLevel(level)
