"""A stream of frames on disk: a DXchange file that is valid at any time, even after a crash.

HDF5 only allocates the file, in blocks of frames, and closes it. Frames are written in place with pwrite(2), so that
the metadata stay unchanged. Besides the datasets of DXchange every frame has a record in `/ministream`, written after
its pixels, with its place in the stream and a checksum over its pixels: partially written frames are detected. The
source `replay` plays the file.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import StorageError
from ministream.model import Frame, FrameKind, Scan
from ministream.storage.reserve import reserve_beside

# Frames allocated at once if the scan does not announce their number.
BLOCK_FRAMES = 256
# Seconds between syncs of the written data to the disk.
FLUSH_S = 1.0
# Small frames share a chunk: HDF5 takes time with the square of the number of chunks to find all of them.
_CHUNK_BYTES = 16 << 20

_PROJECTIONS = "data"
_CALIBRATION = {FrameKind.DARK: "data_dark", FrameKind.FLAT: "data_white"}
# Flats and darks that came after the first projection; DXchange readers take them for a set after the scan.
_LATE = "_post"
_DATASETS = (*_CALIBRATION.values(), *(name + _LATE for name in _CALIBRATION.values()), _PROJECTIONS)
_RECORD = np.dtype(
    [("held", "<u8"), ("checksum", "<u8"), ("place", "<i8"), ("index", "<i8")]
    + [(name, "<f8") for name in ("angle_rad", "acquired_s", "position", "recorded_s")]
)
_OMITTED = np.dtype([("index", "<i8"), ("policy", "S32")])
_FORMAT = 2


@dataclass(slots=True)
class _Place:
    """File positions of the frames of one dataset: pixels, record and angle of each frame."""

    pixels: list[int] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    angles: list[int] = field(default_factory=list)
    count: int = 0


class Archive:
    """Frames of one scan in the order of the stream; one thread at a time may `append`, any may `read`.

    `path` must not exist. `dropped`, set at the end of the stream, counts the projections of the scan that
    it lacks. The file takes `limit_bytes` at most. Raises StorageError naming the file when it cannot be written.
    """

    def __init__(self, path: Path, scan: Scan, *, limit_bytes: float = math.inf) -> None:
        self.path, self.scan = path, scan
        self._limit_bytes = limit_bytes
        self.dropped: int | None = None
        self._omitted: dict[int, str] = {}
        self._dtype = np.dtype(scan.dtype)
        self._places = {name: _Place() for name in _DATASETS}
        self._stream: list[tuple[FrameKind, str, int]] = []
        self._flushed_s = self._started_s = time.monotonic()
        self._started_at_s = time.time()
        wanted_bytes = (scan.darks + scan.flats + (scan.projections or BLOCK_FRAMES)) * scan.frame_bytes
        self._check_limit(wanted_bytes)
        try:
            reserve_beside(path, wanted_bytes)  # HDF5 crashes at the exit of a process in which it met a full disk
            with h5py.File(path, "x", locking=False, libver=("earliest", "v110")) as file:
                self._describe(file)
                for name, count in zip(_DATASETS, (scan.darks, scan.flats, 0, 0, scan.projections), strict=True):
                    self._lay_out(file, name, count or (BLOCK_FRAMES if name == _PROJECTIONS else 0))
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileExistsError as error:
            remedy = "choose another name for the file; `produce --resume` sends one that exists"
            raise StorageError(f"{path}: exists: {remedy}") from error
        except OSError as error:
            atomic.discard(path)
            raise atomic.failed(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, frame: Frame) -> int:
        """Append a frame; return its place in the stream, counted from 0."""
        name = self._dataset_of(frame.kind)
        place, stream_place = self._places[name], len(self._stream)
        try:
            if place.count == len(place.pixels):
                self._extend(name)
            pixels = np.ascontiguousarray(frame.pixels, self._dtype)
            checksum = xxhash.xxh3_64_intdigest(pixels.data)
            now_s = self._started_at_s + time.monotonic() - self._started_s
            numbers = (frame.index, frame.angle_rad, frame.acquired_s, frame.position, now_s)
            record = np.array([(1, checksum, stream_place, *numbers)], _RECORD)
            self._write(pixels, place.pixels[place.count])
            if place.angles:
                self._write(np.array([math.degrees(frame.angle_rad)]), place.angles[place.count])
            self._write(record, place.records[place.count])
            self._stream.append((frame.kind, name, place.count))
            place.count += 1
            if time.monotonic() - self._flushed_s > FLUSH_S:
                self.flush()
        except OSError as error:
            remedy = f"free space; `produce --resume {self.path}` sends what it holds"
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}): {remedy}") from error
        return stream_place

    def omit(self, policies: Mapping[int, str]) -> None:
        """Keep which of the `dropped` projections a policy dropped; the file has them once it is closed."""
        self._omitted |= policies

    def read(self, stream_place: int) -> Frame:
        """The frame at this place of the stream. Raises StorageError where it does not match its checksum."""
        kind, name, number = self._stream[stream_place]
        record, pixels = self._record(name, number), self._pixels(name, number)
        if record["checksum"] != xxhash.xxh3_64_intdigest(pixels.data):
            raise StorageError(f"{self.path}: {kind.name.lower()} {record['index']} does not match its checksum")
        return Frame(
            kind=kind,
            index=int(record["index"]),
            angle_rad=float(record["angle_rad"]),
            pixels=pixels,
            acquired_s=float(record["acquired_s"]),
            position=float(record["position"]),
        )

    def flush(self) -> None:
        """Sync the written data to the disk."""
        os.fdatasync(self._file)
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        """Flush, and truncate the allocated but unused space; may be called again."""
        if self._file < 0:
            return
        try:
            self.flush()
            os.close(self._file)
            self._file = -1
            with h5py.File(self.path, "r+", locking=False) as file:
                if self.dropped is not None:
                    file["ministream"].attrs["dropped"] = self.dropped
                if self._omitted:
                    file["ministream/omitted"] = np.array(list(self._omitted.items()), _OMITTED)
                for name, place in self._places.items():
                    for dataset in self._datasets(file, name):
                        dataset.resize(place.count, axis=0)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error}") from error

    # the file

    def _describe(self, file: h5py.File) -> None:
        file.attrs["implements"] = "exchange"
        about = file.create_group("ministream")
        about.attrs["format"] = _FORMAT
        about.attrs["scan"] = json.dumps(asdict(self.scan))
        file.create_group("exchange")

    def _dataset_of(self, kind: FrameKind) -> str:
        if kind is FrameKind.PROJECTION:
            return _PROJECTIONS
        return _CALIBRATION[kind] + (_LATE if self._places[_PROJECTIONS].count else "")

    def _datasets(self, file: h5py.File, name: str) -> list[h5py.Dataset]:
        """Pixels, records and, of projections, angles."""
        theta = [file["exchange/theta"]] if name == _PROJECTIONS else []
        return [file[f"exchange/{name}"], file[f"ministream/{name}"], *theta]

    def _lay_out(self, file: h5py.File, name: str, frames: int) -> None:
        rows, cols = self.scan.rows, self.scan.cols
        early = {"fillvalue": 0, "track_times": False}
        together = max(1, min(frames or BLOCK_FRAMES, _CHUNK_BYTES // self.scan.frame_bytes))
        _create(file, f"exchange/{name}", (frames, rows, cols), (together, rows, cols), self._dtype, **early)
        _create(file, f"ministream/{name}", (frames,), (BLOCK_FRAMES,), _RECORD, track_times=False)
        if name == _PROJECTIONS:
            theta = _create(file, "exchange/theta", (frames,), (BLOCK_FRAMES,), np.dtype("<f8"), **early)
            theta.attrs["units"] = "degrees"
        self._find(file, name)

    def _extend(self, name: str) -> None:
        self._check_limit(self.path.stat().st_size + BLOCK_FRAMES * self.scan.frame_bytes)
        with h5py.File(self.path, "r+", locking=False) as file:
            for dataset in self._datasets(file, name):
                dataset.resize(len(self._places[name].pixels) + BLOCK_FRAMES, axis=0)
            self._find(file, name)

    def _check_limit(self, wanted_bytes: int) -> None:
        if wanted_bytes > self._limit_bytes:
            raise StorageError(
                f"{self.path}: needs {wanted_bytes / 2**30:.3g} GiB, {self._limit_bytes / 2**30:.3g} GiB are allowed; "
                f"it holds {len(self._stream)} frames. Raise producer.archive_limit_gib, or leave it out"
            )

    def _find(self, file: h5py.File, name: str) -> None:
        place = self._places[name]
        lists = (place.pixels, place.records, place.angles)
        for known, dataset in zip(lists, self._datasets(file, name), strict=False):
            known.extend(_offsets(dataset, len(known)))

    def _record(self, name: str, number: int) -> Any:
        data = os.pread(self._file, _RECORD.itemsize, self._places[name].records[number])
        return np.frombuffer(data, _RECORD)[0]

    def _pixels(self, name: str, number: int) -> NDArray[Any]:
        pixels = np.empty((self.scan.rows, self.scan.cols), self._dtype)
        view, offset = pixels.reshape(-1).view(np.uint8).data, self._places[name].pixels[number]
        while view:
            got = os.preadv(self._file, [view], offset)
            if not got:
                raise StorageError(f"{self.path}: the file was truncated while open")
            view, offset = view[got:], offset + got
        return pixels

    def _write(self, array: NDArray[Any], offset: int) -> None:
        view = array.reshape(-1).view(np.uint8).data
        while view:
            put = os.pwrite(self._file, view, offset)
            view, offset = view[put:], offset + put


def _offsets(dataset: h5py.Dataset, first: int) -> list[int]:
    """The file positions of the entries from `first` on, of a dataset whose chunks hold whole entries."""
    per_chunk, entry_bytes = int(dataset.chunks[0]), math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    starts: dict[int, int] = {}
    for start in range(first - first % per_chunk, dataset.shape[0], per_chunk):
        chunk = dataset.id.get_chunk_info_by_coord((start, *(0,) * (dataset.ndim - 1)))
        starts[start] = int(chunk.byte_offset)
    return [
        starts[number - number % per_chunk] + number % per_chunk * entry_bytes
        for number in range(first, dataset.shape[0])
    ]


def _create(
    file: h5py.File, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any], **options: Any
) -> h5py.Dataset:
    """A resizable dataset whose chunks are allocated at creation."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return file.create_dataset(
        name, shape, dtype, chunks=chunks, maxshape=(None, *shape[1:]), dcpl=properties, **options
    )
