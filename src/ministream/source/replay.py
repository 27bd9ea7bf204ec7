"""A recorded stream, played again frame by frame: what `produce --record` and `produce --archive` wrote.

Every frame is as it was sent: kind, index, angle, pixels, times, and its place in the stream. The file is a DXchange
file; `/ministream` holds the description of the scan and, for every frame, a record with its place and a checksum.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from ministream import config, log, source
from ministream.errors import IncompleteError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.source._hdf5.failures import reading
from ministream.source._hdf5.file import DataFile
from ministream.source._paths import expanded
from ministream.source._watch import Unchanged

_LOG = log.get(__name__)

FORMAT = 2
KINDS = {
    "data_dark": FrameKind.DARK,
    "data_white": FrameKind.FLAT,
    "data_dark_post": FrameKind.DARK,
    "data_white_post": FrameKind.FLAT,
    "data": FrameKind.PROJECTION,
}


class Options(config.Section):
    """`[source]` with `kind = "replay"`."""

    file: Path = Field(strict=False, description="recording that produce --record or --archive wrote")
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["original", "unlimited"] = Field(
        default="original", description="original, a factor such as 2.5, or unlimited: as fast as credit allows"
    )
    times: Literal["recorded", "now"] = Field(
        default="recorded", description="acquisition times of the frames: as recorded, or the time of the replay"
    )


class Source(source.AsRecorded):
    """Plays one recording. Raises InputError for a file that is not one, or holds no frame."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stopping = threading.Event()
        self.keeps_time = options.speed != "unlimited"
        self._path = expanded(options.file)
        self._file = DataFile(self._path)
        self._unchanged = Unchanged(self._path)
        try:
            self._scan, dropped = self._described()
            self._pixels = [self._dataset(f"/exchange/{name}") for name in KINDS]
            self._stream = self._held()
            self.policies = self._omitted()
        except BaseException:
            self._file.close()
            raise
        self._held_projections = int(np.count_nonzero(self._stream["kind"] == FrameKind.PROJECTION))
        self._interrupted = dropped is None and not self._scan.projections
        lacks = max(0, self._scan.projections - self._held_projections) if dropped is None else dropped
        self.dropped = max(0, lacks - len(self.policies))

    def describe(self) -> Scan:
        """The scan as it was sent, under the same id."""
        return self._scan

    def frames(self) -> Iterator[Frame]:
        """The frames in the order of the stream, at the chosen speed.

        Raises InputError for a frame that does not match its checksum, IncompleteError after the last frame of a
        recording that was interrupted where nothing says how many projections it lacks.
        """
        started_s = time.monotonic()
        for entry in self._stream:
            self._wait(started_s, float(entry["recorded_s"] - self._stream["recorded_s"][0]))
            if self._stopping.is_set():
                return
            frame = self._frame(entry)
            yield frame if self._options.times == "recorded" else replace(frame, acquired_s=time.time())
        if self._interrupted:
            raise IncompleteError(
                f"{self._path}: the recording was interrupted after {self._held_projections} projections, and "
                "the scan does not say how many it has. What was recorded is used."
            )

    def stop(self) -> None:
        """End `frames` before its next frame."""
        self._stopping.set()

    def close(self) -> None:
        """Close the file."""
        self.stop()
        self._file.close()

    def _wait(self, started_s: float, after_s: float) -> None:
        speed = self._options.speed
        if speed != "unlimited":
            due_s = started_s + after_s / (1.0 if speed == "original" else speed)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))

    # the file

    def _described(self) -> tuple[Scan, int | None]:
        """The scan, and how many of its projections were lost; None where the recording has no end."""
        about = self._dataset("/ministream/data").parent.attrs
        with reading(self._path, "/ministream"):
            version = int(about["format"])
            if version != FORMAT:
                raise InputError(
                    f"{self._path}: recording of format {version}, expected {FORMAT}. Play it with the release "
                    "of Mini-Stream that wrote it, or its images with --source dxchange"
                )
            facts = json.loads(about["scan"])
            dropped = about.get("dropped")
        try:
            scan = pydantic.TypeAdapter(Scan).validate_python(facts)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            raise self._damaged(f"scan {' '.join(map(str, problem['loc']))}: {problem['msg']}") from None
        return scan, None if dropped is None else int(dropped)

    def _dataset(self, name: str) -> Any:
        found = self._file.find(name)
        if found is None:
            raise InputError(
                f"{self._path}: no dataset {name}, expected a recording that produce --record or --archive "
                "wrote. Play other files with --source dxchange, nxtomo or tiff"
            )
        return found

    def _held(self) -> NDArray[Any]:
        """The records of all complete frames in the order of the stream, each with its kind and where its pixels are:
        `number` in the dataset `part`.
        """
        parts = []
        for part_number, ((name, kind), pixels) in enumerate(zip(KINDS.items(), self._pixels, strict=True)):
            dataset = self._dataset(f"/ministream/{name}")
            with reading(self._path, dataset.name):
                records = dataset[: len(pixels)]
            if not _is_table(records.dtype) or pixels.shape[1:] != (self._scan.rows, self._scan.cols):
                raise self._damaged(f"{dataset.name} does not describe {pixels.name}")
            complete = int(np.argmin(np.append(records["held"], 0)))
            part = np.empty(complete, [*_NUMBERS.items(), ("kind", "<i8"), ("part", "<i8"), ("number", "<i8")])
            for field in _NUMBERS:
                part[field] = records[field][:complete]
            part["kind"], part["part"], part["number"] = kind, part_number, np.arange(complete)
            parts.append(part)
        stream = np.sort(np.concatenate(parts), order="place")
        while stream.size and not self._matches(stream[-1]):
            _LOG.warning("%s: the last frame was partially written and is left out", self._path)
            stream = stream[:-1]
        if not stream.size:
            raise InputError(f"{self._path}: the recording holds no frame. Record the scan again.")
        if not np.array_equal(stream["place"], np.arange(stream.size)):
            raise self._damaged("frames are missing within the stream")
        return stream

    def _omitted(self) -> dict[int, str]:
        """The policy of each projection that one dropped; a recording that was interrupted does not know them."""
        dataset = self._file.find("/ministream/omitted")
        if dataset is None:
            return {}
        with reading(self._path, dataset.name):
            entries = dataset[()]
        if entries.dtype.names != ("index", "policy") or entries.dtype["policy"].kind != "S":
            raise self._damaged(f"{dataset.name} holds {entries.dtype}")
        found = {int(index): policy.decode("ascii", "replace") for index, policy in entries.tolist()}
        if odd := [policy for policy in found.values() if not _POLICY.fullmatch(policy)]:
            raise self._damaged(f"{dataset.name} names a policy {odd[0]!r}")
        return found

    def _matches(self, entry: Any) -> bool:
        return xxhash.xxh3_64_intdigest(self._read(entry).data) == int(entry["checksum"])

    def _read(self, entry: Any) -> NDArray[Any]:
        dataset = self._pixels[int(entry["part"])]
        with reading(self._path, dataset.name):
            pixels: NDArray[Any] = dataset[int(entry["number"])]
        return pixels

    def _frame(self, entry: Any) -> Frame:
        kind, pixels = FrameKind(entry["kind"]), self._read(entry)
        self._unchanged.check()
        if xxhash.xxh3_64_intdigest(pixels.data) != int(entry["checksum"]):
            raise self._damaged(f"{kind.name.lower()} {entry['index']} does not match its checksum")
        return Frame(
            kind=kind,
            index=int(entry["index"]),
            angle_rad=float(entry["angle_rad"]),
            pixels=pixels,
            acquired_s=float(entry["acquired_s"]),
            position=float(entry["position"]),
        )

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self._path}: the recording is damaged: {what}. Copy it again from its origin.")


_NUMBERS = {
    "checksum": "<u8",
    "place": "<i8",
    "index": "<i8",
    **dict.fromkeys(("angle_rad", "acquired_s", "position", "recorded_s"), "<f8"),
}


_POLICY = re.compile(r"[a-z][a-z0-9-]*")


def _is_table(dtype: np.dtype[Any]) -> bool:
    return dtype.names is not None and {"held", *_NUMBERS} <= set(dtype.names)
