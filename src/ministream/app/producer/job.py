"""The producer job: source → sender, beside its end of the tunnel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ministream import log
from ministream.app.announce import announce
from ministream.app.gateway.control_server import embedded
from ministream.config import Config
from ministream.model import Frame, FrameKind
from ministream.source import open_source
from ministream.transport import SenderReport, open_wire
from ministream.tunnel import curve

_LOG = log.get(__name__)


def produce(config: Config, announce_to: Path | None) -> SenderReport:
    """Play the configured source to one receiver, to the last acknowledgement.

    Raises UsageError for a source that cannot be played, PeerError when the receiver stays away or
    misbehaves, TunnelError for this side's control server.
    """
    with ExitStack() as stack:
        wire = open_wire(config.producer.wire, config)
        source = open_source(config.source, order=config.producer.order, repeat=wire.source_passes)
        stack.callback(source.close)
        sender = wire.sender(source.scan, keys=curve.load(config.stream.curve, "producer"))
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
        scan = source.scan
        _LOG.info(
            "scan %s: %d darks, %d flats, %d projections of %d × %d, data on %s",
            *(scan.scan_id, scan.darks, scan.flats, scan.projections, scan.rows, scan.cols, data),
        )
        for frame in paced(wire.played(source.frames), config.producer.rate):
            sender.send(frame)
        return sender.finish()


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
