"""Which sender writes the wire that the configuration names, and what it is given in which order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ministream.config import Config
from ministream.model import Frame, Scan
from ministream.source import Source
from ministream.transport import DaqSender, FrameSender, SenderReport
from ministream.tunnel import curve
from ministream.wire.daq_order import dataset_order, original_order


class Sender(AbstractContextManager["Sender"], Protocol):
    """What the producer job needs of whatever sends."""

    @property
    def address(self) -> str:
        """Where the data are to be had."""
        ...

    def send(self, frame: Frame) -> None:
        """Send one frame, waiting where the receiver wants it."""
        ...

    def finish(self) -> SenderReport:
        """Send the end; what went out."""
        ...


def open_sender(config: Config, scan: Scan) -> tuple[Sender, Sequence[str]]:
    """A sender of `[producer] wire`, and every address it listens at, the data first.

    Raises ConfigError for an address that cannot be had, or keys that cannot be used.
    """
    producer, stream, aps = config.producer, config.stream, config.aps
    if producer.wire == "native":
        sender = FrameSender(
            producer.listen,
            scan,
            checksum=stream.checksum,
            peer_timeout_s=producer.peer_timeout_s,
            stall_timeout_s=stream.stall_timeout_s,
            keys=curve.load(stream.curve, "producer") if stream.curve else None,
        )
        return sender, [sender.address]
    daq = DaqSender(
        producer.listen,
        scan,
        sync_listen=aps.sync,
        subscribers=aps.subscribers,
        queue=aps.queue,
        pixel_dtype=aps.pixel_dtype,
        angle_unit=aps.angle_unit or "degrees",
        peer_timeout_s=producer.peer_timeout_s,
        stall_timeout_s=stream.stall_timeout_s,
        drain_s=producer.peer_timeout_s if config.tunnel.control is not None else 0.0,
    )
    return daq, [address for address in (daq.address, daq.sync_address) if address is not None]


def source_passes(config: Config) -> int:
    """How often the source itself plays its projections; on the DAQ wire a pass repeats the calibration as well."""
    return config.producer.repeat if config.producer.wire == "native" else 1


def played(source: Source, config: Config) -> Iterator[Frame]:
    """The source's frames as the wire wants them: once, or all of them once per pass over the dataset."""
    if config.producer.wire == "native":
        yield from source.frames()
        return
    order = original_order if config.aps.original_order else dataset_order
    for number in range(config.producer.repeat):
        if number:
            time.sleep(config.aps.pass_pause_s)
        yield from order(source.frames())
