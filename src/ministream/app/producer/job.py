"""The producer job: source → backlog → sender, beside its end of the tunnel."""

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
from ministream.app.producer.backlog import Backlog
from ministream.config import Config
from ministream.errors import ConfigError
from ministream.model import Frame, FrameKind
from ministream.source import Live, Source, open_source
from ministream.transport import Sender, SenderReport, open_wire
from ministream.tunnel import curve

_LOG = log.get(__name__)


def produce(config: Config, announce_to: Path | None) -> SenderReport:
    """Play the configured source to one receiver, to the last acknowledgement.

    Raises UsageError for a source that cannot be played, PeerError when the receiver stays away or
    misbehaves, TunnelError for this side's control server.
    """
    with ExitStack() as stack:
        wire = open_wire(config.producer.wire, config)
        source = stack.enter_context(open_source(config.source, order=config.producer.order, repeat=wire.source_passes))
        _check_overflow(config, source)
        scan = source.describe()
        scan = replace(scan, scan_id=config.producer.scan_id or scan.scan_id)
        sender = wire.sender(scan, keys=curve.load(config.stream.curve, "producer"))
        stack.enter_context(sender)
        data, *sync = sender.addresses
        server = embedded(config.tunnel, "PROD", targets=sender.addresses)
        if server is not None:
            stack.enter_context(server)
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
        frames = paced(wire.played(source.frames), config.producer.rate)
        _send(frames, sender, source, config)
        return sender.finish(source.dropped)


def _check_overflow(config: Config, source: Source) -> None:
    producer = config.producer
    if producer.overflow != "block" and not isinstance(source, Live) and producer.rate is None:
        raise ConfigError(
            f"[producer] overflow = {producer.overflow!r} drops projections of a source that does not wait, but "
            f"[source] {config.source.kind} waits. Set producer.rate to play it like a detector, or leave overflow out."
        )


def _send(frames: Iterator[Frame], sender: Sender, source: Source, config: Config) -> None:
    """Send the frames, and which projections the overflow policy dropped."""
    overflow = config.producer.overflow
    if overflow == "block":
        for frame in frames:
            sender.send(frame)
        return
    with Backlog(frames, overflow=overflow, limit=config.producer.backlog, stop=source.stop) as backlog:
        for frame in backlog:
            sender.send(frame)
            if dropped := backlog.drops():
                sender.omit(dropped, reason=overflow, at_s=time.time())
    if dropped := backlog.drops():
        sender.omit(dropped, reason=overflow, at_s=time.time())


def paced(
    frames: Iterator[Frame],
    rate: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Frame]:
    """Let projections pass at `rate` per second; calibration frames and no rate pass at once.

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
