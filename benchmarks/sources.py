"""`python -m benchmarks sources`: how fast sources deliver frames, each against a bare reader of the same file.

Source and bare reader take turns, so that a busy machine slows both; the median ratio counts. The files are in the
page cache. The bare reader reads every image into a separate array with h5py or tifffile, and does nothing else.
For `pva` a server process posts images at a fixed rate: the source and a bare p4p monitor watch the same channel at
the same time, and what counts is how many images each of them has missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import tifffile

from benchmarks import machine
from ministream import config
from ministream.model import FrameKind
from ministream.source import open_source

DETECTOR = Path(__file__).parents[1] / "tests" / "pva_detector.py"
CHANNEL = "SIM:Pva1:Image"

Reader = Callable[[], Iterator[Any]]


def main(argv: list[str]) -> int:
    """Measure, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sources")
    parser.add_argument("--shape", type=int, nargs=3, default=[200, 512, 1024], help="projections, rows, columns")
    parser.add_argument("--repetitions", type=int, default=7, help="pairs of runs; the fastest of each counts")
    parser.add_argument("--pva-seconds", type=float, default=60.0, help="0: skip pva")
    parser.add_argument("--pva-rate", type=float, default=500.0, help="images per second that the detector posts")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    with tempfile.TemporaryDirectory() as folder:
        cases = _files(Path(folder), *options.shape)
        rows = [_compare(name, kind, known, bare, options.repetitions) for name, kind, known, bare in cases]
    if options.pva_seconds:
        rows.append(_watch(options.pva_seconds, options.pva_rate))
    machine.show(rows)
    if options.save:
        print(machine.save("sources", argv, rows, busy=busy))
    return 0


def _files(folder: Path, count: int, rows: int, cols: int) -> Iterator[tuple[str, str, dict[str, Any], Reader]]:
    """Name, kind and options of each source, and the bare reader of its file."""
    random = np.random.default_rng(0)
    smooth = np.linspace(1000, 20000, cols) + 50 * random.random((rows, cols))
    data = np.stack([smooth + 10 * k for k in range(count)]).astype(np.uint16)
    layouts: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "chunk per image": {"chunks": (1, rows, cols)},
        "gzip, chunk per image": {"chunks": (1, rows, cols), "compression": "gzip", "compression_opts": 1},
        "bitshuffle-lz4, chunk per image": {"chunks": (1, rows, cols), **hdf5plugin.Bitshuffle()},
        "bitshuffle-lz4, 8 images per chunk": {"chunks": (8, rows, cols), **hdf5plugin.Bitshuffle()},
    }
    calibration = {"flats": "none", "darks": "none"}
    for name, layout in layouts.items():
        path = folder / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("exchange/data", data=data, **layout)
            file["exchange/theta"] = np.linspace(0, 180, count)
        yield f"dxchange, {name}", "dxchange", {"file": str(path)} | calibration, _hdf5_reader(path, "exchange/data")
    for name in ("contiguous", "gzip, chunk per image", "bitshuffle-lz4, chunk per image"):
        path = folder / f"{name}.nxs"
        with h5py.File(path, "w") as file:
            detector = file.create_group("entry/instrument/detector")
            detector.create_dataset("data", data=data, **layouts[name])
            detector["image_key"] = np.zeros(count)
            file["entry/sample/rotation_angle"] = np.linspace(0, 180, count)
        yield f"nxtomo, {name}", "nxtomo", {"file": str(path)}, _hdf5_reader(path, "entry/instrument/detector/data")
    for k, image in enumerate(data):
        tifffile.imwrite(folder / f"p{k}.tif", image)
    known = {"file": str(folder / "p*.tif"), "angles": {"step": 180 / count}} | calibration
    yield "tiff, a file per image", "tiff", known, _tiff_reader([folder / f"p{k}.tif" for k in range(count)])
    for name, compression in (("tiff, pages", None), ("tiff, zlib, pages", "zlib")):
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, data, photometric="minisblack", compression=compression)
        yield name, "tiff", known | {"file": str(path)}, _pages_reader(path)


def _hdf5_reader(path: Path, name: str) -> Reader:
    def read() -> Iterator[Any]:
        with h5py.File(path, "r") as file:
            dataset = file[name]
            block = (dataset.chunks or (1,))[0]
            for first in range(0, len(dataset), block):
                yield from dataset[first : first + block]

    return read


def _tiff_reader(paths: list[Path]) -> Reader:
    return lambda: (tifffile.imread(path) for path in paths)


def _pages_reader(path: Path) -> Reader:
    def read() -> Iterator[Any]:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                yield page.asarray()

    return read


def _compare(name: str, kind: str, known: dict[str, Any], bare: Reader, repetitions: int) -> dict[str, Any]:
    """Frames per second of both, by turns after a warm-up; opening and checking the file counts for neither.

    The fastest run of each counts: what else the machine does slows the others.
    """
    pairs = [(_source_rate(kind, known), _rate(bare())) for _ in range(repetitions + 1)][1:]
    ours, bares = (max(column) for column in zip(*pairs, strict=True))
    ratio = ours / bares
    return {"source": name, "frames_s": ours, "bare_frames_s": bares, "ratio": ratio, "missed": 0, "bare_missed": 0}


def _source_rate(kind: str, known: dict[str, Any]) -> float:
    with open_source(config.SourceSection(kind=kind, **known), order="sequential", repeat=1) as source:
        return _rate(frame.pixels for frame in source.frames() if frame.kind is FrameKind.PROJECTION)


def _rate(images: Iterator[Any]) -> float:
    started = time.perf_counter()
    count = sum(1 for _ in images)
    return count / (time.perf_counter() - started)


def _watch(seconds: float, rate: float) -> dict[str, Any]:
    """Both watch one channel, on which images come at `rate`."""
    from p4p.client.thread import Context

    count = round(seconds * rate)
    command = [sys.executable, str(DETECTOR), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as detector:
        assert detector.stdin is not None
        assert detector.stdout is not None
        server = f"127.0.0.1:{detector.stdout.readline().strip()}"
        detector.stdin.write('image {"id": 0}\n')
        detector.stdin.flush()
        detector.stdout.readline()
        seen: list[int] = []
        known = {"channel": CHANNEL, "servers": [server], "projections": count, "stall_timeout_s": 5.0}
        with (
            Context("pva", conf={"EPICS_PVA_NAME_SERVERS": server}, nt=False) as context,
            open_source(config.SourceSection(kind="pva", **known), order="sequential", repeat=1) as source,
        ):
            bare = context.monitor(
                CHANNEL, lambda update: seen.append(int(update.uniqueId)), request="record[queueSize=512]field()"
            )
            while not seen:
                time.sleep(0.01)
            thread = threading.Thread(target=lambda: ours.append(sum(1 for _ in source.frames())))
            ours: list[int] = []
            thread.start()
            started = time.perf_counter()
            detector.stdin.write(f"burst {count} 1 {1 / rate}\n")
            detector.stdin.flush()
            detector.stdout.readline()
            took = time.perf_counter() - started
            thread.join()
            bare.close()
            missed = source.dropped
        detector.stdin.close()
    bares = len({number for number in seen if number})
    return {
        "source": f"pva, {took:.0f} s",
        "frames_s": ours[0] / took,
        "bare_frames_s": bares / took,
        "ratio": ours[0] / max(1, bares),
        "missed": missed,
        "bare_missed": count - bares,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
