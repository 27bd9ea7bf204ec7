"""The Python interface: an array becomes a volume, and a live stream is iterated. No launcher is needed.

Under `mpirun` every rank calls the same function: `reconstruct` divides the slices among the ranks, and with `stream`
each rank receives and reconstructs rows of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ministream import config, partition
from ministream.app.recon.assignment import axis_of, is_half_acquisition, resolve
from ministream.axis import Undecided, finder
from ministream.axis.sinograms import sampled_rows
from ministream.config import AUTO, Config
from ministream.errors import ConfigError, FrameError, InputError, PeerLostError
from ministream.model import Frame, FrameKind, Scan
from ministream.prep.corrections import Corrector
from ministream.recon import backend, open_algorithm
from ministream.recon.algorithms import UpdateReport
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.transport import Arrived, Ended, Event, Lost, Omitted, Receiver, ReceivingRank, Refused, open_wire
from ministream.tunnel import curve as curve_keys
from ministream.wire.native import Share

if TYPE_CHECKING:  # importing it starts MPI
    from ministream.parallel.mpi import Comm

_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
_WAIT_S = 0.2

Pixels = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveUpdate:
    """The image after update `index` (from 1): `volume` [slice, row, col], linear attenuation per pixel, float32.

    `first_row` is the detector row of its first slice: 0, except under MPI. `projections` are in the image; `missing`
    were dropped or refused. `residual` is |b - A x| before the last iteration, None for an algorithm that has none.
    `last`: the scan has ended; where nothing is new at the end, the image comes once more, under the same index.
    """

    index: int
    volume: Pixels
    first_row: int
    projections: int
    missing: int
    residual: float | None
    last: bool


def reconstruct(
    projections: ArrayLike,
    angles_deg: ArrayLike,
    *,
    flats: ArrayLike | None = None,
    darks: ArrayLike | None = None,
    algorithm: str = "sirt",
    iterations: int = 50,
    axis: float | Literal["auto"] | None = None,
    threads: int = 0,
    **options: Any,
) -> Pixels:
    """The volume [slice, row, col] of a parallel-beam scan, float32, linear attenuation per pixel.

    `projections` [projection, row, col] are line integrals, or detector counts if there are `flats` [flat, row, col]
    (and `darks`). `angles_deg` has one angle per projection. `axis` is the detector column of the rotation axis, pixel
    centres at integers; none: the middle; "auto": found in the projections. `threads` 0: all cores. `options` are those
    of the algorithm (`ministream config` lists them). Under MPI every rank gets the whole volume.

    Raises InputError for arrays that are no scan, ConfigError for an unknown algorithm or option, and for a half
    acquisition, whose slices are wider than the detector.
    """
    measured = _pixels("projections", projections)
    count, rows, cols = measured.shape
    angles_rad = np.radians(np.asarray(angles_deg, np.float64))
    if angles_rad.shape != (count,) or not np.isfinite(angles_rad).all():
        raise InputError(
            f"angles_deg: found shape {angles_rad.shape}, expected {count} finite angles, one per projection. Pass an "
            "array of that length."
        )
    comm = _ranks()
    own = comm.part(rows) if comm is not None else slice(0, rows)
    settings = config.parse(
        Config,
        {
            "recon": {"kind": algorithm, "axis": axis, "threads": threads, **options},
            "window": {"length": count, "iterations": iterations},
        },
        "reconstruct",
    )
    _use_threads(settings, comm)
    line_integrals = _corrected(measured, flats, darks)
    scan = Scan(scan_id="array", rows=rows, cols=cols, projections=count, flats=0, darks=0, dtype=measured.dtype.str)
    axis_col = _found(line_integrals, angles_rad) if axis == AUTO else axis_of(settings, scan)
    mine = _Slab(settings, scan, own.stop - own.start, axis_col) if own.stop > own.start else None
    if mine is None:
        volume = np.zeros((0, cols, cols), np.float32)
    else:
        for index, (image, angle_rad) in enumerate(zip(line_integrals, angles_rad, strict=True)):
            mine.window.slot(index, float(angle_rad))[:, : mine.slices] = image[own].T
        mine.update()
        volume = mine.volume()
    return volume if comm is None else comm.whole(volume, rows)()


def stream(
    url: str,
    *,
    window: int = 0,
    step: int = 0,
    iterations: int = 1,
    algorithm: str = "sirt",
    axis: float | None = None,
    threads: int = 0,
    curve: str | os.PathLike[str] | None = None,
    timeout_s: float = 120.0,
    **options: Any,
) -> Iterator[LiveUpdate]:
    """Receive the scan that a producer sends at `url`, tcp://HOST:PORT, and yield the image after every update.

    `window` projections are held (0: the whole scan), and each `step` new ones (0: the window's length) bring an update
    of `iterations` iterations. `curve` is a folder of keys from `ministream certs curve`; `timeout_s` is how long to
    wait for the producer. The other arguments are those of `reconstruct`. A loop that is left early disconnects.
    Under MPI each rank gets slices of its own.

    Raises ConfigError for wrong settings and half acquisitions, PeerLostError where the producer stays away, or, after
    the image of what has arrived, where it went before the end of the scan; FrameError where no projection can be used,
    InputError for a scan without usable flats.
    """
    settings = config.parse(
        Config,
        {
            "recon": {"kind": algorithm, "axis": axis, "threads": threads, **options},
            "window": {"length": window, "step": step, "iterations": iterations},
            "stream": {"connect": url, "connect_timeout_s": timeout_s, "curve": None if curve is None else Path(curve)},
        },
        "stream",
    )
    comm = _ranks()
    rank, ranks = (comm.rank, comm.size) if comm is not None else (0, 1)
    _use_threads(settings, comm)
    with ExitStack() as stack:
        receiver = stack.enter_context(
            open_wire(settings.stream.wire, settings).receiver(
                (url,),
                rank=ReceivingRank(number=rank, count=ranks, share=Share(first=rank, last=rank + 1, ranks=ranks)),
                keys=curve_keys.load(settings.stream.curve, "receiver"),
            )
        )
        scan = receiver.scan()
        slab = partition.slabs(scan.rows, ranks)[rank]
        live = _LiveSlab(resolve(settings, scan), scan, slab.rows, receiver)
        while not live.ended:
            live.take(receiver.next(_WAIT_S))
            if live.due:
                live.update()
                live.take(receiver.next(_WAIT_S))  # if this is the end, the image is the last one
                yield live.shown(slab.first)
        live.check_end()


class _LiveSlab:
    """Slices that are reconstructed from what a receiver brings."""

    def __init__(self, settings: Config, scan: Scan, rows: int, receiver: Receiver) -> None:
        self._receiver = receiver
        self._slab = _Slab(settings, scan, rows, axis_of(settings, scan))
        self._corrector = Corrector(rows=rows, cols=scan.cols, options=settings.prep, dtype=scan.dtype)
        self._updates = self._missing = self._used = self._imaged = 0
        self._residual: float | None = None
        self._lost = ""
        self.ended = False

    @property
    def due(self) -> bool:
        """Whether there is an image to show; at the end also where nothing is new, since more may be missing."""
        return self._used > 0 and (self._slab.window.due or self.ended)

    def take(self, event: Event | None) -> None:
        """Use what has arrived. Raises FrameError for a flat or dark that is damaged."""
        match event:
            case Arrived(seq=seq, frame=frame):
                self._use(frame)
                self._receiver.ack(seq)
            case Refused(seq=seq, text=text, kind=kind):
                if kind is not FrameKind.PROJECTION:
                    raise FrameError(f"{text}; the calibration frames are needed. Start the producer again.")
                self._missing += 1
                self._receiver.ack(seq)
            case Omitted(indices=indices):
                self._missing += len(indices)
            case Lost(text=text):
                self.ended, self._lost = True, text
            case Ended():
                self.ended = True

    def check_end(self) -> None:
        """Raises PeerLostError for a scan that was cut short, FrameError for one without a usable projection."""
        if self._lost:
            raise PeerLostError(f"{self._lost}, after {self._used} projections. Start the producer again.")
        if not self._used:
            raise FrameError(
                f"none of the projections can be used: {self._missing} are missing. See the producer's log."
            )

    def update(self) -> None:
        """Update the image, if there is anything new."""
        if self._slab.window.fresh:
            self._residual = self._slab.update()
            self._updates, self._imaged = self._updates + 1, self._used

    def shown(self, first_row: int) -> LiveUpdate:
        """The image as it is."""
        return LiveUpdate(
            index=self._updates,
            volume=self._slab.volume(),
            first_row=first_row,
            projections=self._imaged,
            missing=self._missing,
            residual=self._residual,
            last=self.ended,
        )

    def _use(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.PROJECTION:
            self._corrector.add(frame.kind, frame.pixels, frame.position)
            return
        window = self._slab.window
        before = window.fresh
        slot = window.slot(frame.index, frame.angle_rad)
        self._used += window.fresh - before
        self._corrector.correct(frame.pixels, slot, frame.position)


class _Slab:
    """Window, image and algorithm for some slices."""

    def __init__(self, settings: Config, scan: Scan, slices: int, axis_col: float) -> None:
        if is_half_acquisition(settings, scan, axis_col):
            raise ConfigError(
                f"the rotation axis {axis_col:g} is far from the middle of {scan.cols} columns, a half acquisition, "
                "whose slices are wider than the detector. Use `ministream recon`, or field='detector' for slices as "
                "wide as the detector"
            )
        geometry = Geometry(n=scan.cols, cols=scan.cols, axis_col=axis_col)
        self._backend, self.slices, self._iterations = backend.default(), slices, settings.window.iterations
        self._backend.warm_up(slices)
        section = settings.window
        length = section.length
        self.window = Window(length=length, step=section.step or length, cols=scan.cols, slices=slices)
        self._algorithm = open_algorithm(settings.recon, geometry, slices)
        self._image = self._backend.new_image(geometry, slices)

    def update(self) -> float | None:
        """Update the image; returns the residual norm."""
        report: UpdateReport = self._algorithm.update(self._image, self.window, self._iterations)
        self.window.updated()
        return math.sqrt(report.residual_norm2[-1]) if report.residual_norm2 else None

    def volume(self) -> Pixels:
        """A copy of the image, [slice, row, col]."""
        return np.ascontiguousarray(self._backend.host(self._image)[:, :, : self.slices].transpose(2, 0, 1))


def _ranks() -> Comm | None:
    """All ranks under an MPI launcher, None without one."""
    if not any(name in os.environ for name in _LAUNCHED):
        return None
    from ministream.parallel import mpi

    return mpi.world()


def _use_threads(settings: Config, comm: Comm | None) -> None:
    threads = settings.recon.threads
    if not threads and comm is not None:
        from ministream.parallel import mpi

        threads = mpi.fair_threads(comm)
    backend.default().set_threads(threads or len(os.sched_getaffinity(0)))


def _pixels(name: str, values: ArrayLike) -> NDArray[Any]:
    found = np.asarray(values)
    if found.ndim != 3 or 0 in found.shape or found.dtype.kind not in "uif":
        raise InputError(
            f"{name}: found shape {found.shape} of {found.dtype}, expected numbers [projection, row, col]. Add the "
            "missing axis, for example array[:, None, :] for one row."
        )
    return found


def _corrected(measured: NDArray[Any], flats: ArrayLike | None, darks: ArrayLike | None) -> Pixels:
    """Line integrals [projection, row, col]."""
    if flats is None:
        bad = np.flatnonzero(~np.isfinite(measured).all(axis=(1, 2)))
        if bad.size:
            raise InputError(
                f"projections: {bad.size} contain values that are not finite, the first is {bad[0]}; expected line "
                "integrals. Mend them, or pass counts with flats, whose bad pixels are mended."
            )
        return measured.astype(np.float32, copy=False)
    _, rows, cols = measured.shape
    corrector = Corrector(rows=rows, cols=cols, options=config.PrepSection(), dtype=measured.dtype.str)
    for kind, name, frames in ((FrameKind.FLAT, "flats", flats), (FrameKind.DARK, "darks", darks)):
        for frame in _pixels(name, frames) if frames is not None else ():
            if frame.shape != (rows, cols):
                raise InputError(f"{name}: found {frame.shape}, expected {(rows, cols)}. Pass frames of one detector.")
            corrector.add(kind, frame)
    lines, out = np.empty(measured.shape, np.float32), np.empty((cols, rows), np.float32)
    for index, counts in enumerate(measured):
        corrector.correct(np.ascontiguousarray(counts), out)
        lines[index] = out.T
    return lines


def _found(line_integrals: Pixels, angles_rad: NDArray[np.float64]) -> float:
    rows = sampled_rows(line_integrals.shape[1])
    sinograms = np.ascontiguousarray(line_integrals[:, rows].transpose(1, 0, 2))
    found = finder.find(sinograms, angles_rad, rows, rows, last=True, total=lambda values: values)
    if isinstance(found, Undecided):
        raise InputError(f"the rotation axis cannot be found: {found.reason}. Pass axis=COLUMN.")
    return found.axis_col
