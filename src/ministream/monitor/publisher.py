"""Publishes reconstructions and projections as TImage, for the viewers of aps-mini-apps and other subscribers."""

from __future__ import annotations

from typing import Self

import numpy as np
import zmq
from numpy.typing import NDArray

from ministream import bounded, hosts, log
from ministream.errors import ConfigError
from ministream.model import Frame
from ministream.wire import timage
from ministream.wire.timage import ImageType

_log = log.get(__name__)

_LINGER_MS = 1000


class _Publisher:
    """A PUB socket that never waits for a subscriber. Port 0 selects a free port; `address` contains it.

    Raises ConfigError when the address cannot be bound.
    """

    def __init__(self, address: str, option: int, value: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.LINGER, _LINGER_MS)
        self._socket.set(option, value)
        try:
            self.address = hosts.bind_all(address, self._bind)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"{address}: cannot publish there ({error.strerror}). Choose another with --pub-addr."
            ) from error
        _log.info("publishing TImage on %s", self.address)

    def _bind(self, url: str) -> str:
        self._socket.set(zmq.IPV6, int("[" in url))
        self._socket.bind(url)
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the port; queued messages get one second to be sent."""
        self._socket.close()
        bounded.close("publisher", self._context.term, linger_s=_LINGER_MS / 1000)


class ReconstructionPublisher(_Publisher):
    """Publishes slices: a slow subscriber receives the newest ones and misses older ones.

    The cost for the job is one copy of the slices, for any number of subscribers.
    """

    def __init__(self, address: str) -> None:
        # A queue of one message per subscriber: the newest message replaces an unsent one.
        super().__init__(address, zmq.CONFLATE, 1)

    def publish(self, slices: NDArray[np.float32], *, update: int, axis_col: float) -> None:
        """Send slices [slice, row, col] of update number `update`.

        Type and axis convention follow aps-mini-apps, whose reconstructions carry the type END.
        Raises UsageError when the slices exceed the limit of a TImage (2 GiB).
        """
        message = timage.encode(slices, image_type=ImageType.END, seq=update, center=axis_col + 0.5, unique_id=update)
        self._socket.send(message, copy=False)


class ProjectionPublisher(_Publisher):
    """Publishes projections: a subscriber more than `queue` projections behind misses the next ones."""

    def __init__(self, address: str, *, queue: int = 200) -> None:
        super().__init__(address, zmq.SNDHWM, queue)

    def publish(self, frame: Frame, pixels: NDArray[np.float32], *, axis_col: float) -> None:
        """Send the corrected `pixels` [rows, cols] of a projection, its angle in radians."""
        message = timage.encode(
            pixels,
            image_type=ImageType.PROJECTION,
            seq=frame.index,
            rotation=frame.angle_rad,
            center=axis_col + 0.5,
            unique_id=frame.index,
        )
        self._socket.send(message, copy=False)

    def end(self) -> None:
        """Publish the end of the stream."""
        self._socket.send(timage.END_OF_DATA)
