"""The distributor's wire of aps-mini-apps: corrected projections, distributed by detector row on request."""

from __future__ import annotations

from ministream.transport import _wire
from ministream.transport._aps.tracemq_receiver import TraceMqReceiver
from ministream.transport._aps.tracemq_server import TraceMqServer
from ministream.transport._wire import Reception

__all__ = ["TraceMqReceiver", "TraceMqServer", "Wire"]


class Wire(_wire.Wire):
    """`tracemq`. Its sender is `TraceMqServer`, which `ministream distribute` runs: it sends corrected projections."""

    every_rank = True
    corrected = True

    def _receiver(self, asked: Reception) -> TraceMqReceiver:
        stream = self._config.stream
        return TraceMqReceiver(
            asked.urls[0],
            rank=asked.rank.number,
            size=asked.rank.count,
            angle_unit=self._config.aps.angle_unit or "radians",
            connect_timeout_s=stream.connect_timeout_s,
            stall_timeout_s=stream.stall_timeout_s,
        )
