"""The producer job: source → backlog or archive → sender and recording, beside its end of the tunnel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ministream import log
from ministream.app.announce import announce
from ministream.app.gateway.control_server import embedded
from ministream.app.metrics import open_endpoint, tunnel_readings
from ministream.app.open_network import check_open
from ministream.app.producer.accounting import AccountedSender
from ministream.app.producer.backlog import Backlog
from ministream.app.producer.metrics import readings
from ministream.app.producer.spool import Spool
from ministream.app.producer.stopping import StopSignals
from ministream.config import Config, SourceSection
from ministream.errors import ConfigError, IncompleteError, StorageError
from ministream.model import Frame, FrameKind
from ministream.monitor import Latency
from ministream.source import Source, open_source
from ministream.storage.archive import Archive
from ministream.transport import SenderReport, Wire, open_wire
from ministream.tunnel import curve

_LOG = log.get(__name__)

# Archived frames that wait in memory for the receiver; the others are read back.
_SPOOL_BYTES = 2**29


def produce(config: Config, announce_to: Path | None) -> SenderReport:
    """Play the configured source to one receiver, to the last acknowledgement, or to a stop signal.

    Raises UsageError for a source that cannot be played, PeerError when the receiver stays away or
    misbehaves, TunnelError for this side's control server, StorageError for an archive that cannot be created or, at
    the end, one that does not hold the whole scan, IncompleteError after a stop signal.
    """
    # The gateway closes after the sender, whose last message passes through it.
    with StopSignals() as stop, ExitStack() as gateway, ExitStack() as stack:
        wire = open_wire(config.producer.wire, config)
        source = _open(config, wire, stack)
        _check_overflow(config, source)
        scan = source.describe()
        scan = replace(scan, scan_id=config.producer.scan_id or scan.scan_id)
        archive, record = (
            stack.enter_context(Archive(path, scan, limit_bytes=limit)) if path is not None else None
            for path, limit in ((config.producer.archive, _limit_bytes(config)), (config.producer.record, math.inf))
        )
        for found in scan.notices:
            _LOG.warning("[source] %s: %s", config.source.kind, found.text)
        keys = curve.load(config.stream.curve, "producer")
        if keys is None:
            check_open(
                (config.producer.listen, config.aps.sync),
                allowed=config.producer.open_network,
                instead="Encrypt with --curve, listen on 127.0.0.1 behind a tunnel",
            )
        sender = wire.sender(scan, keys=keys)
        stack.enter_context(sender)
        data, *sync = sender.addresses
        server = embedded(config.tunnel, "PROD", targets=sender.addresses)
        if server is not None:
            gateway.enter_context(server)
        announce(
            announce_to,
            data=data,
            sync=sync[0] if sync else None,
            control=server.address if server else None,
        )
        _LOG.info(
            "scan %s: %d darks, %d flats, %d projections of %d × %d, data on %s",
            *(scan.scan_id, scan.darks, scan.flats, scan.projections, scan.rows, scan.cols, data),
        )
        frames = stop.frames(paced(wire.played(source.frames), config.producer.rate, sleep=stop.sleep), source.stop)
        accounted = AccountedSender(
            sender, scan, record, calibration_first=wire.calibration_first, policies=source.policies, stop=stop
        )
        if config.producer.metrics is not None:
            accounted.latency = Latency()
            endpoint = open_endpoint(config.producer.metrics, open_network=config.producer.open_network)
            endpoint.add(lambda: readings(accounted))
            if server is not None:
                endpoint.add(lambda: tunnel_readings(server))
            stack.enter_context(endpoint)
        failed = _send(frames, accounted, source, config, archive)
        if archive is not None:
            archive.dropped = accounted.missing(source.dropped)
            archive.omit(accounted.left_out)
        report = accounted.finish(source.dropped)
        if failed is not None:
            raise StorageError(f"the scan was sent, but its archive is not complete: {failed}")
        if stop.cut:
            whole = f" of {scan.projections}" if scan.projections else ""
            raise IncompleteError(f"stopped by {stop.name}: {report.projections}{whole} projections were sent")
        return report


def _limit_bytes(config: Config) -> float:
    limit_gib = config.producer.archive_limit_gib
    return math.inf if limit_gib is None else limit_gib * 2**30


def _open(config: Config, wire: Wire, stack: ExitStack) -> Source:
    """The source, or in its place the archive to be sent."""
    section, order, repeat = config.source, config.producer.order, wire.source_passes
    if config.producer.resume is not None:
        values = {"kind": "replay", "file": str(config.producer.resume), "speed": "unlimited"}
        section = SourceSection.model_validate(values)
        order, repeat = "sequential", 1
    return stack.enter_context(open_source(section, order=order, repeat=repeat))


def _check_overflow(config: Config, source: Source) -> None:
    producer = config.producer
    if producer.overflow != "block" and producer.archive is not None:
        raise ConfigError(
            f"[producer] overflow = {producer.overflow!r} drops projections, but archive keeps all of them until the "
            "receiver takes them: omit one of the two."
        )
    if producer.overflow != "block" and not source.keeps_time and producer.rate is None:
        raise ConfigError(
            f"[producer] overflow = {producer.overflow!r} drops projections of a source that does not wait, but "
            f"[source] {config.source.kind} waits. Set producer.rate to play it like a detector, or omit overflow."
        )


def _send(
    frames: Iterator[Frame], sender: AccountedSender, source: Source, config: Config, archive: Archive | None
) -> StorageError | None:
    """Send the frames, and report which projections the overflow policy dropped.

    Returns why the archive does not hold all of them, if so.
    """
    overflow = config.producer.overflow
    if archive is not None:
        with Spool(frames, archive, hold_bytes=_SPOOL_BYTES, stop=source.stop) as spool:
            for frame in spool:
                sender.send(frame, spool.again)
        return spool.failed
    if overflow == "block":
        for frame in frames:
            sender.send(frame)
        return None
    with Backlog(frames, overflow=overflow, limit=config.producer.backlog, stop=source.stop) as backlog:
        for frame in backlog:
            sender.drop(backlog.drops(), policy=overflow)
            sender.send(frame)
    sender.drop(backlog.drops(), policy=overflow)
    return None


def paced(
    frames: Iterator[Frame],
    rate: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Frame]:
    """Pass projections at `rate` per second; calibration frames are not delayed, nor anything without a rate.

    A consumer that lags does not make the following projections come faster than the rate: a real
    detector does not hurry either.
    """
    period_s = 1 / rate if rate else 0.0
    due = -math.inf
    while True:
        sleep(max(0.0, due - clock()))
        # a start that is late by less than a period keeps the schedule; a later one begins a new schedule
        started = due if clock() - due < period_s else clock()
        frame = next(frames, None)
        if frame is None:
            return
        if frame.kind is FrameKind.PROJECTION:
            due = started + period_s
        yield frame
