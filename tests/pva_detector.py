"""Plays areaDetector's PVA plug-in over one channel, as it is told line by line:  python pva_detector.py PORT

`image {"id": 7, ...}` posts one image, `burst N FIRST PERIOD_S` N of them. Every line is answered.
"""

from __future__ import annotations

import io
import json
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import h5py
import hdf5plugin
import imagecodecs
import numpy as np
from p4p.nt import NTNDArray, NTScalar
from p4p.server import Server
from p4p.server.raw import SharedPV

CHANNEL = "SIM:Pva1:Image"
ROWS, COLS = 4, 6
SCALARS = {"uint8": 5, "uint16": 6, "float32": 9}


def bslz4(pixels: Any) -> bytes:
    """As the bitshuffle library packs them, without the 12 bytes that HDF5's filter puts before."""
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("data", data=pixels, chunks=pixels.shape, **hdf5plugin.Bitshuffle(cname="lz4"))
        _, packed = data.id.read_direct_chunk((0, 0))
    return bytes(packed[12:])


PACK: dict[str, Callable[[Any], bytes]] = {
    "zlib": lambda pixels: zlib.compress(pixels.tobytes()),
    "lz4": lambda pixels: imagecodecs.lz4_encode(pixels.tobytes()),
    "blosc": lambda pixels: imagecodecs.blosc_encode(pixels.tobytes(), typesize=pixels.itemsize, shuffle=1),
    "bslz4": bslz4,
    "jpeg": lambda pixels: imagecodecs.jpeg8_encode(pixels, level=100),
}


def image(made: NTNDArray, facts: dict[str, Any]) -> Any:
    """An update with the image of that number; its pixels tell the number."""
    number, dtype = facts["id"], facts.get("dtype", "uint16")
    rows, cols = facts.get("rows", ROWS), facts.get("cols", COLS)
    pixels = np.full((rows, cols), number % 60_000, dtype)
    if facts.get("ramp"):
        pixels += np.arange(rows * cols).reshape(rows, cols).astype(dtype)
    value = made.wrap(pixels)
    value.uniqueId = number
    value.timeStamp.secondsPastEpoch = 1_700_000_000 + number
    value.attribute = [
        {"name": name, "value": content, "descriptor": "", "sourceType": 0, "source": ""}
        for name, content in facts.get("attributes", {}).items()
    ]
    value.codec.name = codec = facts.get("codec", "")
    if codec:
        packed = PACK[codec](pixels) if codec in PACK else pixels.tobytes()
        value.codec.parameters = facts.get("scalar", SCALARS[dtype])
        value.value = ("ubyteValue", np.frombuffer(packed, np.uint8)[: facts.get("packed_bytes")])
        value.uncompressedSize = pixels.nbytes
    if facts.get("colour"):
        value.dimension = [*value.dimension, value.dimension[0]]
    return value


def main() -> None:
    """Serve until the input ends."""
    made = NTNDArray()
    empty = made.wrap(np.zeros((0, 0), np.uint16))
    empty.dimension = []
    channel = SharedPV(initial=empty)
    server = {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_SERVER_PORT": sys.argv[1],
        "EPICS_PVAS_BROADCAST_PORT": "0",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    }
    temperature = SharedPV(nt=NTScalar("d"), initial=20.0)
    with Server(providers=[{CHANNEL: channel, "SIM:Temperature": temperature}], conf=server, useenv=False) as running:
        print(running.conf()["EPICS_PVAS_SERVER_PORT"], flush=True)
        for line in sys.stdin:
            word, _, rest = line.partition(" ")
            if word == "image":
                channel.post(image(made, json.loads(rest)))
            else:
                count, first, period_s = rest.split()
                for number in range(int(first), int(first) + int(count)):
                    channel.post(image(made, {"id": number, "attributes": {"SampleRotary": number / 10}}))
                    time.sleep(float(period_s))
            print("done", flush=True)


if __name__ == "__main__":
    main()
