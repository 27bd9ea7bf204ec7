"""A producer in a separate process that streams frames as fast as they are taken, or at a fixed rate.

python -m benchmarks._frame_source ROWS FRAMES [--bare] [--period-s SECONDS]

`acquired_s` of a frame is the UNIX time at which it was handed over. With `--bare` frames go through a PUSH socket of
ZeroMQ and nothing else: no session, no credit, no checksums.
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Iterator

import numpy as np
import zmq
from numpy.typing import NDArray

from ministream.model import Frame, FrameKind, Scan
from ministream.transport.native import FrameSender

COLS = 1024
STAMP = struct.Struct("<d")


def main() -> None:
    """Print the address to connect to, then stream."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("frames", type=int)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--period-s", type=float, default=0.0)
    options = parser.parse_args()
    stream = push if options.bare else send
    stream(options.rows, options.frames, options.period_s)


def images(rows: int, frames: int, period_s: float) -> Iterator[NDArray[np.uint16]]:
    """Enough different images to exceed the caches, as a detector's do."""
    ring = [np.full((rows, COLS), k, np.uint16) for k in range(max(1, min(frames, (64 << 20) // (rows * COLS * 2))))]
    due = time.perf_counter()
    for index in range(frames):
        time.sleep(max(0.0, due - time.perf_counter()))
        due += period_s
        yield ring[index % len(ring)]


def send(rows: int, frames: int, period_s: float) -> None:
    """Over the native wire."""
    scan = Scan(scan_id="benchmark", rows=rows, cols=COLS, projections=frames, flats=0, darks=0, dtype="<u2")
    with FrameSender("tcp://127.0.0.1:0", scan) as sender:
        print(sender.address, flush=True)
        for index, pixels in enumerate(images(rows, frames, period_s)):
            sender.send(
                Frame(kind=FrameKind.PROJECTION, index=index, angle_rad=0.0, pixels=pixels, acquired_s=time.time())
            )
        sender.finish()


def push(rows: int, frames: int, period_s: float) -> None:
    """Over a PUSH socket, which is done when the last frame is sent."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.bind("tcp://127.0.0.1:0")
        print(socket.last_endpoint.decode(), flush=True)
        for pixels in images(rows, frames, period_s):
            socket.send_multipart([STAMP.pack(time.time()), pixels], copy=False)


if __name__ == "__main__":
    main()
