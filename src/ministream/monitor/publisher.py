"""Publishes reconstructions as TImage, for the viewers of aps-mini-apps and whoever else subscribes."""

from __future__ import annotations

from typing import Self

import numpy as np
import zmq
from numpy.typing import NDArray

from ministream import log
from ministream.errors import ConfigError
from ministream.wire import timage
from ministream.wire.timage import ImageType

_log = log.get(__name__)


class ReconstructionPublisher:
    """A PUB socket that never waits: a subscriber that lags gets the newest reconstruction and misses older ones.

    The cost to the job is one copy of what is published. Port 0 takes any free port; `address` says which.

    Raises ConfigError when the address cannot be bound.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.LINGER, 1000)
        # A queue of one message per subscriber, whose newest replaces the one that has not left yet.
        self._socket.set(zmq.CONFLATE, 1)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"--pub-addr {address}: cannot listen there: {error.strerror}") from error
        self.address = self._socket.get_string(zmq.LAST_ENDPOINT)
        _log.info("reconstructions are published on %s", self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the port back; what is on its way gets a second to leave."""
        self._socket.close()
        self._context.term()

    def publish(self, slices: NDArray[np.float32], *, update: int, axis_col: float) -> None:
        """Send slices [slice, row, col] of update number `update`, with the type, and the axis in the convention,
        that the original uses.

        Raises UsageError when they are more than one TImage holds (2 GiB).
        """
        message = timage.encode(slices, image_type=ImageType.END, seq=update, center=axis_col + 0.5, unique_id=update)
        self._socket.send(message, copy=False)
