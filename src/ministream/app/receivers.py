"""Which receiver reads the wire that the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ministream.config import Config
from ministream.errors import ConfigError
from ministream.model import CurveKeys, Scan
from ministream.transport import DaqReceiver, Event, FrameReceiver, ReceiverReport, TraceMqReceiver
from ministream.tunnel import curve
from ministream.wire.native import Share


class Receiver(AbstractContextManager["Receiver"], Protocol):
    """What the job needs of whatever receives."""

    def scan(self) -> Scan:
        """Wait until it is known what will come."""
        ...

    def next(self, timeout_s: float) -> Event | None:
        """The next event; None when there is none in time."""
        ...

    def ack(self, seq: int) -> None:
        """Everything up to `seq` has been used."""
        ...

    @property
    def report(self) -> ReceiverReport:
        """What has come so far."""
        ...


def receiver_keys(config: Config) -> CurveKeys | None:
    """The keys of `[stream] curve`; None without. Raises ConfigError for what cannot be used."""
    return curve.load(config.stream.curve, "receiver") if config.stream.curve else None


def open_receiver(
    config: Config,
    urls: Sequence[str],
    *,
    worker: tuple[int, int] = (0, 1),
    ready: int | None = None,
    share: Share | None = None,
    keys: CurveKeys | None = None,
) -> Receiver:
    """A receiver of `[stream] wire`, for what is sent at `urls`: the data, and behind a tunnel the sync socket.

    `worker` says which TraceMQ worker it is, of how many; `ready` for how many subscribers it stands on the TImage
    wire, `[aps] subscribers` unless given; `share` which rows it wants, and `keys` encrypt, on the native
    wire. Raises ConfigError for what is missing or not understood.
    """
    stream, aps = config.stream, config.aps
    timeouts = {"connect_timeout_s": stream.connect_timeout_s, "stall_timeout_s": stream.stall_timeout_s}
    match stream.wire:
        case "timage":
            if aps.pixel_dtype is None:
                raise ConfigError("the TImage wire does not tell the pixels' dtype: give --pixel-dtype")
            return DaqReceiver(
                urls[0],
                sync_url=urls[1] if len(urls) > 1 else aps.sync,
                ready=ready or aps.subscribers,
                pixel_dtype=aps.pixel_dtype,
                angle_unit=aps.angle_unit or "degrees",
                hold_bytes=int(aps.hold_mib * 2**20),
                needs_flats=config.prep.flat_dark,
                **timeouts,
            )
        case "tracemq":
            rank, size = worker
            return TraceMqReceiver(urls[0], rank=rank, size=size, angle_unit=aps.angle_unit or "radians", **timeouts)
        case "native":
            return FrameReceiver(
                urls[0],
                credit_bytes=int(stream.credit_mib * 2**20),
                connect_timeout_s=stream.connect_timeout_s,
                stall_timeout_s=stream.stall_timeout_s,
                keys=keys,
                share=share,
            )
