"""The data-acquisition wire of aps-mini-apps: TImage from a publisher, and a socket for the ready handshake."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ministream.errors import ConfigError
from ministream.model import CurveKeys, Frame, Scan
from ministream.transport import _wire
from ministream.transport._aps.daq_receiver import DaqReceiver
from ministream.transport._aps.daq_sender import DaqSender
from ministream.transport._wire import Reception
from ministream.wire.daq_order import dataset_order, original_order

__all__ = ["DaqReceiver", "DaqSender", "Wire"]


class Wire(_wire.Wire):
    """`timage`."""

    sends = True

    def sender(self, scan: Scan, *, keys: CurveKeys | None = None) -> DaqSender:
        producer, aps = self._config.producer, self._config.aps
        return DaqSender(
            producer.listen,
            scan,
            sync_listen=aps.sync,
            subscribers=aps.subscribers,
            queue=aps.queue,
            pixel_dtype=aps.pixel_dtype,
            angle_unit=aps.angle_unit or "degrees",
            peer_timeout_s=producer.peer_timeout_s,
            stall_timeout_s=self._config.stream.stall_timeout_s,
            # a tunnel ends with this job, and data still in it is lost
            drain_s=producer.peer_timeout_s if self._config.tunnel.control is not None else 0.0,
        )

    def _receiver(self, asked: Reception) -> DaqReceiver:
        stream, aps = self._config.stream, self._config.aps
        if aps.pixel_dtype is None:
            raise ConfigError("TImage messages do not name the dtype of their pixels: give --pixel-dtype")
        return DaqReceiver(
            asked.urls[0],
            sync_url=asked.urls[1] if len(asked.urls) > 1 else aps.sync,
            ready=asked.subscribers or aps.subscribers,
            pixel_dtype=aps.pixel_dtype,
            angle_unit=aps.angle_unit or "degrees",
            hold_bytes=int(aps.hold_mib * 2**20),
            needs_flats=self._config.prep.flat_dark,
            connect_timeout_s=stream.connect_timeout_s,
            stall_timeout_s=stream.stall_timeout_s,
        )

    @property
    def source_passes(self) -> int:
        """Once: on this wire every pass repeats the calibration too, so `played` repeats the whole dataset."""
        return 1

    def played(self, frames: Callable[[], Iterator[Frame]]) -> Iterator[Frame]:
        order = original_order if self._config.aps.original_order else dataset_order
        for number in range(self._config.producer.repeat):
            if number:
                time.sleep(self._config.aps.pass_pause_s)
            yield from order(frames())
