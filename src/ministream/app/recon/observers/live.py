"""Serves the live view: rank 0 answers viewers, the other ranks send it their parts of the pictures they ask for."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from ministream import log
from ministream.app.recon import live_key, steering
from ministream.app.recon.live_pictures import Joining, Pixels, SlabParts, SlabPictures, exists, has_fbp
from ministream.app.recon.live_server import STALLED_S, LiveServer
from ministream.app.recon.live_slices import LiveSlices
from ministream.app.recon.observing import Quiet, Run, Update, VolumeWritten
from ministream.monitor import Rate
from ministream.parallel.mailbox import Mailbox
from ministream.recon import backend
from ministream.wire.live import Happening, JobState, Phase, Picture, ScanFacts, Shape, UpdateRecord

_LOG = log.get(__name__)

POLL_S = 0.02
PUBLISH_S = 0.5
LINGER_S = 2.0
MAX_HAPPENINGS = 100
_TEXT_CHARS = 400


class ServeLiveView(Quiet):
    """Nothing in it waits for a viewer or for another rank, except at the end for LINGER_S at most.

    Raises ConfigError, on rank 0, for an address that cannot be bound.
    """

    stage = "live"

    def __init__(self, run: Run, address: str) -> None:
        super().__init__()
        self._run = run
        self._mailbox = Mailbox(run.comm)
        backend.default().warm_up_planes()
        self._pictures = SlabPictures(run.assignment, run.parts)
        self._slices = LiveSlices(run.comm, run.assignment, run.parts)
        self._wanted: tuple[Picture, ...] = ()
        self._update, self._serial, self._polled_s = 0, 0, 0.0
        self._desk = _Desk(run, address) if run.comm.rank == 0 else None

    def updated(self, update: Update) -> None:
        """Send the parts of the new image."""
        self._update = update.index
        if self._desk is not None:
            self._desk.updated(update)
        self._slices.updated(update.index)
        self._send()

    def poll(self) -> None:
        """Exchange messages, at most every POLL_S."""
        now = time.monotonic()
        if now - self._polled_s < POLL_S:
            return
        self._polled_s = now
        self._exchange()
        if self._desk is not None:
            wanted, slices = self._desk.wanted()
            self._slices.want(slices)
            if wanted != self._wanted:
                self._wanted = wanted
                self._mailbox.post(wanted)
                self._send()
            self._desk.tick(now)

    def finished(self, written: VolumeWritten) -> None:
        """Show the outcome, with the last image."""
        self._slices.end()
        self._settle()
        if self._desk is not None:
            self._desk.finished(written)

    def close(self) -> None:
        """Close the socket; viewers that still ask get LINGER_S to receive the last state."""
        self._slices.close()
        if self._desk is not None:
            self._desk.close()

    def _exchange(self) -> None:
        for rank, message in self._mailbox.poll():
            if self._desk is not None:
                self._desk.arrived(rank, message)
            else:
                self._wanted = message
                self._send()
        pictures = self._slices.poll()
        if self._desk is not None and pictures:
            self._desk.show(pictures)

    def _send(self) -> None:
        """Send this rank's parts of the wanted pictures to rank 0."""
        if not self._wanted:
            return
        pixels = {picture: self._pictures.part(picture) for picture in self._wanted}
        self._serial += 1
        parts = SlabParts(
            serial=self._serial,
            update=self._update,
            pixels={picture: found for picture, found in pixels.items() if found is not None},
            angle_rad=self._pictures.angle_rad,
            stages=self._run.clock.seconds(),
        )
        if self._desk is not None:
            self._desk.arrived(0, parts)
        else:
            self._mailbox.post(parts)

    def _settle(self) -> None:
        """Wait until the parts of the last pictures are with rank 0, LINGER_S at most."""
        desk = self._desk
        done: Callable[[], bool] = (
            (lambda: not self._wanted or desk.joining.complete(self._update))
            if desk is not None
            else (lambda: not self._mailbox.busy)
        )
        end = time.monotonic() + LINGER_S
        while not (done() and self._slices.idle) and time.monotonic() < end:
            time.sleep(1e-3)
            self._exchange()


class _Desk:
    """Rank 0's part: the server, and the state that it shows."""

    def __init__(self, run: Run, address: str) -> None:
        self._run, self._ledger = run, run.parts.books.ledger
        self.joining = Joining(run.assignment)
        self._log = _LogTail()
        self._rate = Rate()
        self._last: Update | None = None
        self._outcome: tuple[Phase, str] | None = None
        self._seen, self._arrived_s, self._published_s = -1, time.monotonic(), 0.0
        folder = run.assignment.config.output.directory
        self._key_file = folder / live_key.NAME
        key = live_key.of_job(folder)
        stalled_s = min(STALLED_S, run.assignment.config.stream.stall_timeout_s)
        self._server = LiveServer(
            address,
            key.for_server(),
            stalled_s=stalled_s,
            operator=key.operator,
            check=lambda command, value: steering.check(command, value, run.assignment),
        )
        key.write(folder, self._server.address)
        self._server.__enter__()
        logging.getLogger("ministream").addHandler(self._log)
        _LOG.info("live view on %s: ministream view %s", self._server.address, folder)

    def wanted(self) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
        """The pictures to send: those cut from image and window, and slices on demand."""
        found = [picture for picture in self._server.wanted() if exists(picture, self._run.assignment)]
        slices = tuple(picture for picture in found if picture.by == "fbp")
        return tuple(picture for picture in found if picture.by != "fbp"), slices

    def arrived(self, rank: int, parts: SlabParts) -> None:
        """Add a rank's parts."""
        self.show(self.joining.add(rank, parts))

    def show(self, pictures: Mapping[Shape, Pixels]) -> None:
        """Publish pictures that are complete."""
        if pictures:
            self._server.show(pictures)
            self._publish()
            if self._last is not None and any(shape.update == self._last.index for shape in pictures):
                self._run.parts.books.published(self._last)

    def updated(self, update: Update) -> None:
        """Add the record of an update."""
        self._last = update
        self._record(update, {})
        self._publish()

    def tick(self, now: float) -> None:
        """Publish the counts, at most every PUBLISH_S."""
        if self._ledger.received != self._seen:
            self._seen, self._arrived_s = self._ledger.received, now
            self._rate.update(self._seen)
        self._server.alive()
        for command, value in self._server.commands():
            self._run.parts.steering.ask(command, value)
            if command == "finish":
                self._run.finish("the operator")
        if now - self._published_s > PUBLISH_S:
            self._publish()

    def finished(self, written: VolumeWritten) -> None:
        """Publish the outcome."""
        if written.complete:
            self._outcome = "finished", f"every projection is in {written.volume.name}"
        else:
            self._outcome = "incomplete", "; ".join(written.missing)
        self._publish()

    def close(self) -> None:
        """End the server, and remove the key file."""
        logging.getLogger("ministream").removeHandler(self._log)
        try:
            if self._outcome is None:
                self._outcome = "incomplete", "the job ended early, without a volume"
                self._publish()
        finally:
            self._server.close(LINGER_S)
            self._key_file.unlink(missing_ok=True)

    def _record(self, update: Update, quality: dict[str, float]) -> None:
        self._server.updated(
            UpdateRecord(
                index=update.index,
                elapsed_s=update.elapsed_s,
                projections=update.ledger.used,
                residual=update.residual_norm,
                per_s=self._rate.per_s,
                behind_s=update.behind_s,
                quality=quality,
            )
        )

    def _publish(self) -> None:
        self._published_s = time.monotonic()
        quality = self._run.comparison.newest
        if self._last is not None and quality.get("update") == self._last.index:
            self._record(self._last, {name: quality[name] for name in ("ssim", "psnr") if name in quality})
        self._server.publish(self._state(), arrived_s=self._arrived_s)

    def _state(self) -> JobState:
        ledger, last, latency = self._ledger, self._last, self._run.parts.books.latency
        phase, text = self._outcome or (("live", "") if ledger.received else ("waiting", "no projection has arrived"))
        refused = {f"{kind} {reason}": n for kind, found in ledger.refusals.items() for reason, n in found.items()}
        return JobState(
            job=self._server.job,
            number=0,
            phase=phase,
            text=text[:1000],
            scan=self._facts(),
            elapsed_s=self._run.parts.books.elapsed_s,
            ledger={name: int(count) for name, count in msgspec.to_builtins(ledger.totals()).items()},
            losses={**refused, **self._run.dropped()},
            per_s=self._rate.per_s,
            lag=max(0, ledger.received - ledger.refused - ledger.repeated - ledger.imaged),
            behind_s=last.behind_s if last is not None else None,
            latency_s={"p50": latency.percentile(50), "p99": latency.percentile(99)},
            update=last.index if last is not None else 0,
            notices=self._run.notices(),
            happenings=self._log.happenings(),
            stages=self.joining.stages,
        )

    def _facts(self) -> ScanFacts:
        assignment, scan = self._run.assignment, self._run.assignment.scan
        return ScanFacts(
            scan_id=scan.scan_id,
            sample=scan.sample,
            rows=scan.rows,
            cols=scan.cols,
            n=assignment.n,
            projections=scan.projections,
            pixel_size_um=scan.pixel_size_um,
            algorithm=assignment.config.recon.kind,
            ranks=self._run.comm.size,
            threads=assignment.threads,
            tilted=True,
            fbp=has_fbp(assignment),
        )


class _LogTail(logging.Handler):
    """Keeps the last lines of the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[Happening] = deque(maxlen=MAX_HAPPENINGS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(Happening(record.created, record.levelname, record.getMessage()[:_TEXT_CHARS]))

    def happenings(self) -> tuple[Happening, ...]:
        """The lines, oldest first."""
        self.acquire()
        try:
            return tuple(self._lines)
        finally:
            self.release()


def observe(run: Run) -> ServeLiveView | None:
    """An instance on every rank if an address for the live view is given."""
    address = run.assignment.config.output.live
    return ServeLiveView(run, address) if address is not None else None
