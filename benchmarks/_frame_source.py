"""A producer in a process of its own that streams frames as fast as they are taken.

python -m benchmarks._frame_source ROWS FRAMES
"""

from __future__ import annotations

import sys

import numpy as np

from ministream.model import Frame, FrameKind, Scan
from ministream.transport.native import FrameSender

COLS = 1024


def main(rows: int, frames: int) -> None:
    """Print the address to dial, then stream `frames` frames of `rows` rows."""
    scan = Scan(scan_id="benchmark", rows=rows, cols=COLS, projections=frames, flats=0, darks=0, dtype="<u2")
    # as many different frames as do not fit a cache, as those of a detector
    ring = [np.full((rows, COLS), k, np.uint16) for k in range(max(1, min(frames, (64 << 20) // (rows * COLS * 2))))]
    with FrameSender("tcp://127.0.0.1:0", scan) as sender:
        print(sender.address, flush=True)
        for index in range(frames):
            pixels = ring[index % len(ring)]
            sender.send(
                Frame(kind=FrameKind.PROJECTION, index=index, angle_rad=0.0, pixels=pixels, acquired_s=float(index))
            )
        sender.finish()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
