"""A live detector over EPICS PVAccess: NTNDArray updates, as areaDetector's PVA plug-in publishes them.

Every update has a number, `uniqueId`; a gap says that updates were lost between the detector and here, and they are
counted. Angles and frame types come from the attributes of the update. The update that comes with a connection is the
current image of the channel: it gives the geometry and is not played.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from p4p.client.thread import Context, Disconnected
from pydantic import Field

from ministream import config, log, source
from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.source import _codecs
from ministream.source._angles import AngleRange, AngleUnit

_LOG = log.get(__name__)

# What areaDetector's TomoScan drivers put into the frame type attribute, as number or text.
KINDS = {"0": FrameKind.PROJECTION, "projection": FrameKind.PROJECTION}
KINDS |= dict.fromkeys(("1", "flatfield", "flat", "white"), FrameKind.FLAT)
KINDS |= dict.fromkeys(("2", "darkfield", "dark"), FrameKind.DARK)
# The original type of compressed pixels, which the codec's parameters give as a number of EPICS's scalar types.
SCALARS = {1: "i1", 2: "i2", 3: "i4", 4: "i8", 5: "u1", 6: "u2", 7: "u4", 8: "u8", 9: "f4", 10: "f8"}

# More images than this are not lost at once: the detector has begun to number them anew.
MOST_LOST = 100_000
# What an NTNDArray has.
FIELDS = {"value", "dimension", "attribute", "uniqueId", "codec", "timeStamp"}


class Options(config.Section):
    """`[source]` with `kind = "pva"`."""

    channel: str = Field(description="PVAccess channel of the images, such as 13SP1:Pva1:Image")
    servers: list[str] = Field(default=[], description="HOST[:PORT] of PVA servers; none: from EPICS_PVA_* variables")
    projections: int = Field(default=0, description="projections of the scan; 0: until no more arrive")
    flats: int = Field(default=0, ge=0, description="flats to expect")
    darks: int = Field(default=0, ge=0, description="darks to expect")
    axis: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="rotation axis column; none: middle"
    )
    pixel_size_um: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    angles: AngleRange | None = Field(default=None, description="{start, step}; none: from the attributes")
    angle_unit: AngleUnit = Field(default="degrees", description="unit of the angles: degrees or radians")
    angle_attribute: str = Field(default="SampleRotary", description="attribute with the angle of the image")
    start_attribute: str = Field(default="StartPos", description="attribute with the first angle, where there is none")
    step_attribute: str = Field(default="ScanDelta", description="attribute with the step between two angles")
    type_attribute: str = Field(
        default="FrameType", description="attribute with the frame type: projection, flat, dark"
    )
    queue: int = Field(default=512, ge=4, description="updates that the client holds before some are lost")
    connect_timeout_s: float = Field(default=30.0, gt=0, description="longest wait for the channel and its image")
    stall_timeout_s: float = Field(default=30.0, gt=0, description="longest wait for the next image, or to reconnect")


def _search(servers: list[str]) -> dict[str, str] | None:
    """Where to look for the channel: a server of pvAccessCPP, such as areaDetector's, is found over UDP alone."""
    if not servers:
        return None
    hosts = [server.rpartition(":")[0] or server for server in servers]
    return {"EPICS_PVA_NAME_SERVERS": " ".join(servers), "EPICS_PVA_ADDR_LIST": " ".join(hosts)}


class Source(source.Live):
    """Monitors one channel. Raises InputError for images that cannot be used, and for an unreachable channel."""

    def __init__(self, options: Options) -> None:
        if options.angles is not None and options.angles.step is None:
            raise ConfigError("[source] pva: angles of a detector need start and step, for example {start=0, step=0.5}")
        self._options = options
        self._stopping = threading.Event()
        self._updates: queue.Queue[Any] = queue.Queue(options.queue)
        self._attributes: dict[str, Any] = {}
        self._sizes: list[int] = []
        self._codec = ""
        self._scalar: str | None = None
        self._last_id: int | None = None
        self._connected = False
        self._pending: Any = None
        self._warned: set[str] = set()
        self._context = Context("pva", conf=_search(options.servers), useenv=True, nt=False)
        # by default a monitor keeps four updates, and merges the others into the last one
        request = f"record[queueSize={options.queue}]field()"
        self._monitor = self._context.monitor(options.channel, self._arrived, request=request, notify_disconnect=True)
        try:
            self._first = self._first_image()
        except BaseException:
            self.close()
            raise
        rows, cols = self._first.shape
        self._scan = Scan(
            scan_id=uuid.uuid4().hex,
            rows=rows,
            cols=cols,
            projections=options.projections,
            flats=options.flats,
            darks=options.darks,
            dtype=self._first.dtype.str,
            axis_col=options.axis,
            pixel_size_um=options.pixel_size_um,
            sample=options.channel,
        )

    def describe(self) -> Scan:
        """Geometry of the image that the channel has; counts as the options say."""
        return self._scan

    def frames(self) -> Iterator[Frame]:
        """Images as they arrive, until all that are expected have arrived or nothing comes for `stall_timeout_s`.

        A projection without a finite angle is left out: its index is a gap, as that of a lost one is.
        """
        counts = dict.fromkeys(FrameKind, 0)
        while not self._stopping.is_set() and not self._is_complete(counts):
            update, self._pending = self._pending or self._next(self._options.stall_timeout_s), None
            if update is None:
                break
            missed, kind = self._missed(update), self._kind()
            if kind is FrameKind.PROJECTION:
                missed = min(missed, self._left(counts))
                self.dropped += missed
                counts[kind] += missed
            if kind is FrameKind.PROJECTION and not self._left(counts):
                continue
            frame = self._frame(update, kind, counts[kind], counts[FrameKind.PROJECTION])
            counts[kind] += 1
            if math.isfinite(frame.angle_rad):
                yield frame
            else:
                self._leave_out(frame)
        if not self._stopping.is_set() and self._options.projections:
            self.dropped += self._left(counts)

    def stop(self) -> None:
        """End `frames` soon."""
        self._stopping.set()

    def close(self) -> None:
        """Close the channel; repeatable."""
        self.stop()
        self._monitor.close()
        self._context.close()

    # from the client's thread

    def _arrived(self, update: Any) -> None:
        """Keep an update until it is fetched; while this queue is full, the client's own queue fills up."""
        while not self._stopping.is_set():
            try:
                self._updates.put(update, timeout=0.1)
                return
            except queue.Full:
                continue

    # in the thread that reads the frames

    def _first_image(self) -> NDArray[Any]:
        update = self._next(self._options.connect_timeout_s)
        if update is not None and not self._sizes:
            # the detector has taken no image yet: the first one it takes belongs to the scan
            self._missed(update)
            self._pending = update = self._next(self._options.connect_timeout_s)
        if update is None:
            raise InputError(
                f"{self._options.channel}: no image within {self._options.connect_timeout_s:g} s. Check the name and "
                "that the detector's PVA plug-in is enabled; over routers name the server with --set source.servers"
            )
        if self._pending is None:
            self._missed(update)
        return self._pixels(update)

    def _next(self, timeout_s: float) -> Any:
        """The next image; None when the timeout expires, or the source is stopped."""
        deadline = time.monotonic() + timeout_s
        while not self._stopping.is_set() and time.monotonic() < deadline:
            try:
                update = self._updates.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(update, Disconnected):
                if self._connected:
                    _LOG.warning("%s: disconnected, reconnecting", self._options.channel)
                self._connected = False
                continue
            if isinstance(update, Exception):
                raise InputError(f"{self._options.channel}: {update}") from update
            if missing := FIELDS - set(update.keys()):
                raise InputError(
                    f"{self._options.channel}: the channel has {update.getID()}, without {', '.join(sorted(missing))}, "
                    "expected epics:nt/NTNDArray. Name the channel of the images of an NDPluginPva"
                )
            again, self._connected = not self._connected and self._last_id is not None, True
            if self._is_new(update, again):
                return update
        return None

    def _is_new(self, update: Any, again: bool) -> bool:
        """Keep what an update need not repeat; after a reconnection the first one may have come before."""
        changed = update.changedSet()
        if "attribute" in changed or not self._attributes:
            self._attributes = {found.name: found.value for found in update.attribute}
        if "dimension" in changed or not self._sizes:
            self._sizes = [int(dimension.size) for dimension in update.dimension]
        if any(name.startswith("codec") for name in changed):
            parameters = update.codec.parameters
            self._codec = str(update.codec.name)
            self._scalar = None if parameters is None else SCALARS.get(int(np.ravel(parameters)[0]))
        if again:
            _LOG.info("%s: connected again", self._options.channel)
        return not again or update.uniqueId != self._last_id

    def _missed(self, update: Any) -> int:
        """How many images were lost before this one; 0 where its number says nothing about that."""
        before, self._last_id = self._last_id, int(update.uniqueId)
        if before is None:
            return 0
        missed = self._last_id - before - 1
        if missed == -1:
            self._warn_once("uniqueId is %d in two images: images that are lost cannot be counted", self._last_id)
        elif not -1 <= missed <= MOST_LOST:
            self._warn_once("uniqueId went from %d to %d: the detector numbers its images anew", before, self._last_id)
        return missed if 0 <= missed <= MOST_LOST else 0

    def _warn_once(self, text: str, *values: object) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _LOG.warning("%s: " + text, self._options.channel, *values)

    def _leave_out(self, frame: Frame) -> None:
        self.dropped += 1
        self._warn_once("projection %d has no finite angle; it and others like it are left out", frame.index)

    def _left(self, counts: dict[FrameKind, int]) -> int:
        """How many more projections are expected; as many as can be lost at once where no number is."""
        expected = self._options.projections
        return max(0, expected - counts[FrameKind.PROJECTION]) if expected else MOST_LOST

    def _is_complete(self, counts: dict[FrameKind, int]) -> bool:
        """Whether all is here: flats and darks that are still missing may be taken after the projections."""
        calibrated = counts[FrameKind.FLAT] >= self._options.flats and counts[FrameKind.DARK] >= self._options.darks
        return calibrated and not self._left(counts)

    def _kind(self) -> FrameKind:
        said = self._attributes.get(self._options.type_attribute, 0)
        finite = isinstance(said, (int, float)) and math.isfinite(said)
        word = str(int(said)) if finite else str(said).strip().lower()
        if word not in KINDS:
            raise InputError(
                f"{self._options.channel}: attribute {self._options.type_attribute} is {said!r}, expected 0, 1 or 2 "
                "(projection, flat, dark). Name another attribute with --set source.type_attribute=NAME"
            )
        return KINDS[word]

    def _frame(self, update: Any, kind: FrameKind, index: int, position: int) -> Frame:
        pixels = self._pixels(update)
        scan = self._scan
        if (*pixels.shape, pixels.dtype.str) != (scan.rows, scan.cols, scan.dtype):
            raise InputError(
                f"{self._options.channel}: image {update.uniqueId} has {pixels.shape[0]} x {pixels.shape[1]} "
                f"{pixels.dtype}, expected {scan.rows} x {scan.cols} {np.dtype(scan.dtype)}. Do not change the "
                "detector's settings during a scan; start again."
            )
        angle_rad = self._angle_rad(index) if kind is FrameKind.PROJECTION else 0.0
        stamp = update.timeStamp
        taken_s = stamp.secondsPastEpoch + stamp.nanoseconds * 1e-9
        acquired_s = taken_s if taken_s > 0 else time.time()
        return Frame(
            kind=kind, index=index, angle_rad=angle_rad, pixels=pixels, acquired_s=acquired_s, position=float(position)
        )

    def _angle_rad(self, index: int) -> float:
        options, known = self._options, self._attributes
        if options.angles is not None and options.angles.step is not None:
            angle = options.angles.start + options.angles.step * index
        elif options.angle_attribute in known:
            angle = self._number(options.angle_attribute)
        elif options.start_attribute in known and options.step_attribute in known:
            angle = self._number(options.start_attribute) + self._number(options.step_attribute) * index
        else:
            raise InputError(
                f"{options.channel}: angles are missing: the images have no attribute {options.angle_attribute}, nor "
                f"{options.start_attribute} and {options.step_attribute} (they have {', '.join(known) or 'none'}): "
                "give them with --set 'source.angles={start=0, step=DEGREES}', or name the attribute with "
                "--set source.angle_attribute=NAME"
            )
        return angle if options.angle_unit == "radians" else math.radians(angle)

    def _number(self, name: str) -> float:
        value = self._attributes[name]
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"{self._options.channel}: attribute {name} is {value!r}, expected a number. Name another attribute "
                "with --set source.angle_attribute=NAME, or give --set 'source.angles={start=0, step=DEGREES}'"
            ) from None

    def _pixels(self, update: Any) -> NDArray[Any]:
        """The image [rows, cols]; the first dimension of an NTNDArray is the one that changes fastest."""
        sizes = self._sizes
        if len(sizes) != 2 or 0 in sizes:
            raise InputError(
                f"{self._options.channel}: the image has dimensions {sizes}, expected columns and rows, a grey image. "
                "Set the detector's ColorMode to Mono"
            )
        if self._codec:
            return self._unpacked(update, (sizes[1], sizes[0]))
        flat = np.asarray(update.value)
        if flat.size != sizes[0] * sizes[1] or flat.dtype.kind not in "iuf":
            raise InputError(
                f"{self._options.channel}: image {update.uniqueId} has {flat.size} pixels of {flat.dtype}, expected "
                f"{sizes[1]} x {sizes[0]} numbers"
            )
        return np.array(flat.reshape(sizes[1], sizes[0]))

    def _unpacked(self, update: Any, shape: tuple[int, int]) -> NDArray[Any]:
        channel = self._options.channel
        if self._scalar is None:
            raise InputError(
                f"{channel}: image {update.uniqueId} is compressed with {self._codec!r}, and codec.parameters does not "
                "name the type of its pixels. Set the compressor of NDPluginCodec to None"
            )
        try:
            return _codecs.unpack(self._codec, np.asarray(update.value), shape, np.dtype(self._scalar))
        except ConfigError as error:
            raise ConfigError(f"{channel}: {error}") from None
        except ValueError as error:
            raise InputError(
                f"{channel}: image {update.uniqueId}, compressed with {self._codec!r}, is damaged: {error}. Set the "
                "compressor of NDPluginCodec to None"
            ) from error
