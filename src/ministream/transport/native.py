"""Mini-Stream's own wire: credit, acknowledgements, checksums, resumption; over TCP, Unix sockets or in process."""

from __future__ import annotations

from ministream.model import CurveKeys, Scan
from ministream.transport import _wire
from ministream.transport._native.frame_receiver import FrameReceiver
from ministream.transport._native.frame_sender import FrameSender
from ministream.transport._wire import Reception

__all__ = ["FrameReceiver", "FrameSender", "Wire"]


class Wire(_wire.Wire):
    """`native`."""

    sends = True
    encrypts = True
    shares_rows = True
    calibration_first = True
    stripes = True

    def sender(self, scan: Scan, *, keys: CurveKeys | None = None) -> FrameSender:
        producer, stream = self._config.producer, self._config.stream
        return FrameSender(
            producer.listen,
            scan,
            checksum=stream.checksum,
            peer_timeout_s=producer.peer_timeout_s,
            outage_timeout_s=stream.outage_timeout_s,
            silent_timeout_s=stream.silent_timeout_s,
            hold_bytes=int(producer.hold_mib * 2**20),
            keys=keys,
        )

    def _receiver(self, asked: Reception) -> FrameReceiver:
        stream = self._config.stream
        return FrameReceiver(
            asked.urls[: stream.streams],
            streams=stream.streams,
            credit_bytes=int(stream.credit_mib * 2**20),
            connect_timeout_s=stream.connect_timeout_s,
            stall_timeout_s=stream.stall_timeout_s,
            outage_timeout_s=stream.outage_timeout_s,
            silent_timeout_s=stream.silent_timeout_s,
            keys=asked.keys,
            share=asked.rank.share,
            scan_id=asked.rank.scan_id,
            held=asked.rank.held,
            saves=asked.rank.saves,
            reports=True,
        )
