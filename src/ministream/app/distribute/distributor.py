"""The distributor: receives a scan, corrects it, and sends its detector rows to the workers of aps-mini-apps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ministream import log
from ministream.app.announce import announce
from ministream.app.open_network import check_open
from ministream.config import Config
from ministream.errors import ConfigError, FrameError
from ministream.ledger import Ledger, shortfalls
from ministream.model import Frame, FrameKind, Scan
from ministream.monitor.publisher import ProjectionPublisher
from ministream.prep.images import Corrected, ImageCorrector, Steps
from ministream.transport import Arrived, Ended, Lost, Refused, open_wire
from ministream.transport.tracemq import TraceMqServer
from ministream.tunnel import curve
from ministream.wire.tracemq import Projection

_LOG = log.get(__name__)

# Interval of polls without frames, so that an interrupt is noticed.
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Options of a distributor beyond receiving.

    `serve` is the first worker's address. Every `publish_every`-th corrected projection is published at `publish`.
    `rows` and `cols` are 0 if unknown in advance; with both, the workers join before the scan begins, so that it does
    not wait for them. A worker may lag by `window` projections.
    """

    steps: Steps
    serve: str | None = None
    publish: str | None = None
    publish_every: int = 1
    first_row: int = 0
    rows: int = 0
    cols: int = 0
    window: int = 64
    workers_timeout_s: float = 600.0


@dataclass(kw_only=True)
class DistributionReport:
    """Result of a distribution; `ending` is the end of the scan in one line.

    In the `ledger` a projection that has been passed on counts as used, imaged and written.
    """

    workers: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    bytes: int = 0
    seconds: float = 0.0
    complete: bool = False
    ending: str = ""


def distribute(config: Config, options: Distribution, announce_to: Path | None) -> DistributionReport:
    """Receive one scan and serve every worker, both to the end.

    Raises ConfigError for rows or columns that the scan does not have and for recon.axis = auto, PeerLostError for a
    producer or worker that stays away, FrameError for a refused frame in a strict run.
    """
    if config.recon.finds_axis:
        raise ConfigError("recon.axis = auto: the distributor does not look for the axis. Give a column with --center")
    if config.stream.connect is None:
        raise ConfigError("no data source. Give --data_source_addr tcp://HOST:PORT")
    with ExitStack() as stack:
        # The workers of aps-mini-apps do not authenticate, and its distributor is open by default.
        check_open((options.serve, options.publish), allowed=True, instead="")
        server = publisher = None
        if options.serve is not None:
            stall_s = options.workers_timeout_s
            server = stack.enter_context(TraceMqServer(options.serve, window=options.window, stall_timeout_s=stall_s))
        if options.publish is not None:
            publisher = stack.enter_context(ProjectionPublisher(options.publish))
        announce(
            announce_to, workers=server.address if server else None, publish=publisher.address if publisher else None
        )
        return _Distributor(config, options, server, publisher).run()


class _Distributor:
    """The distribution of one scan."""

    def __init__(
        self,
        config: Config,
        options: Distribution,
        server: TraceMqServer | None,
        publisher: ProjectionPublisher | None,
    ) -> None:
        self._config, self._options = config, options
        self._server, self._publisher = server, publisher
        self._corrector = ImageCorrector(options.steps)
        self._rows = slice(options.first_row, options.first_row + options.rows if options.rows else None)
        self._report = DistributionReport()

    def run(self) -> DistributionReport:
        options, report = self._options, self._report
        if options.rows and options.cols:
            self._join(options.rows, options.cols)
        started = time.monotonic()
        # the original sends ready once for each of its workers
        ready = max(report.workers, self._config.aps.subscribers)
        stream = self._config.stream
        with open_wire(stream.wire, self._config).receiver(
            [str(stream.connect)], subscribers=ready, keys=curve.load(stream.curve, "receiver")
        ) as receiver:
            scan = receiver.scan()
            rows = self._rows_of(scan)
            if not report.workers:
                self._join(rows, scan.cols)
            while not report.ending:
                event = receiver.next(_POLL_S)
                match event:
                    case Arrived(seq=seq, frame=frame):
                        self._take(frame, scan)
                        receiver.ack(seq)
                    case Refused(seq=seq, reason=reason, text=text, kind=kind):
                        self._refuse(kind, reason, text)
                        receiver.ack(seq)
                    case Ended(totals=totals):
                        self._pass_on(self._corrector.rest(), scan)
                        delivered = totals.projections + totals.dropped
                        told = Ledger(delivered=delivered, sent=totals.projections, drops=dict(totals.drops))
                        missing = shortfalls(told, report.ledger)
                        report.complete = not missing
                        report.ending = "; ".join(missing) or "the producer sent everything"
                    case Lost(text=text):
                        self._pass_on(self._corrector.rest(), scan)
                        report.ending = text
            report.bytes = receiver.report.bytes
            receiver.conclude(written=True, complete=report.complete, text=report.ending)
        if self._publisher is not None:
            self._publisher.end()
        if self._server is not None:
            self._server.finish()
        report.seconds = time.monotonic() - started
        return report

    def _join(self, rows: int, cols: int) -> None:
        if self._server is not None:
            timeout_s = self._options.workers_timeout_s
            self._report.workers = self._server.join(rows=rows, cols=cols, timeout_s=timeout_s)

    def _rows_of(self, scan: Scan) -> int:
        """Number of rows to distribute. Raises ConfigError for rows or columns that the scan does not have."""
        options = self._options
        if options.cols and options.cols != scan.cols:
            raise ConfigError(f"--num_columns {options.cols}: the projections have {scan.cols} columns")
        last = options.first_row + options.rows
        if last > scan.rows or options.first_row >= scan.rows:
            raise ConfigError(
                f"--beg_sinogram {options.first_row} --num_sinograms {options.rows}: the projections have only rows "
                f"0 to {scan.rows - 1}"
            )
        return options.rows or scan.rows - options.first_row

    def _take(self, frame: Frame, scan: Scan) -> None:
        if frame.kind is not FrameKind.PROJECTION:
            self._corrector.add(frame)
            return
        self._report.ledger.received += 1
        self._pass_on(self._corrector.correct(frame), scan)

    def _pass_on(self, corrected: Iterable[Corrected], scan: Scan) -> None:
        ledger = self._report.ledger
        axis_col = scan.axis_or_middle if self._config.recon.axis_col is None else self._config.recon.axis_col
        for frame, pixels in corrected:
            ledger.used += 1
            ledger.imaged = ledger.written = ledger.used
            if self._publisher is not None and ledger.used % self._options.publish_every == 0:
                self._publisher.publish(frame, pixels, axis_col=axis_col)
            if self._server is not None:
                projection = Projection(
                    projection_id=frame.index, theta=frame.angle_rad, center=axis_col + 0.5, pixels=pixels[self._rows]
                )
                self._server.push(projection)

    def _refuse(self, kind: FrameKind, reason: str, text: str) -> None:
        self._report.ledger.received += kind is FrameKind.PROJECTION
        self._report.ledger.refuse(kind, reason)
        _LOG.warning("frame rejected: %s", text)
        if self._config.stream.strict:
            raise FrameError(f"{text}; the run is strict", reason=reason)
