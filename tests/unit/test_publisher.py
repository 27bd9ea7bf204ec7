"""What is published arrives as TImage; a subscriber that does not read costs the publisher nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest
import zmq

from ministream.errors import ConfigError
from ministream.model import Frame, FrameKind
from ministream.monitor.publisher import ProjectionPublisher, ReconstructionPublisher
from ministream.wire import timage
from ministream.wire.timage import ImageType


@pytest.fixture
def subscribed():
    """A function that gives a SUB socket, connected to an address and known to the publisher."""
    context = zmq.Context()
    sockets = []

    def subscribe(address: str, *, hwm: int = 1000) -> zmq.Socket:
        socket = context.socket(zmq.SUB)
        sockets.append(socket)
        socket.set(zmq.RCVHWM, hwm)
        socket.subscribe(b"")
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(address)
        connected = monitor.poll(5000)
        socket.disable_monitor()
        monitor.close()
        assert connected
        time.sleep(0.1)  # the subscription follows the handshake
        return socket

    yield subscribe
    for socket in sockets:
        socket.close(linger=0)
    context.term()


def volume(value: int, shape=(2, 4, 4)) -> np.ndarray:
    return np.full(shape, value, np.float32)


def test_a_reconstruction_arrives_as_timage(subscribed) -> None:
    with ReconstructionPublisher("tcp://127.0.0.1:0") as publisher:
        socket = subscribed(publisher.address)
        publisher.publish(volume(3), update=7, axis_col=1.5)
        assert socket.poll(5000)
        image = timage.decode(socket.recv())
    assert (image.dims, image.seq, image.center, image.image_type) == ((2, 4, 4), 7, 2.0, ImageType.END)
    np.testing.assert_array_equal(image.pixels("float32"), volume(3))


def test_a_subscriber_that_lags_gets_the_newest_and_costs_nothing(subscribed) -> None:
    shape = (4, 256, 256)
    with ReconstructionPublisher("tcp://127.0.0.1:0") as publisher:
        socket = subscribed(publisher.address, hwm=1)
        started = time.monotonic()
        for update in range(200):
            publisher.publish(volume(update, shape), update=update, axis_col=1.5)
        assert time.monotonic() - started < 5
        updates = []
        while socket.poll(1000):
            updates.append(timage.decode(socket.recv()).seq)
    assert updates[-1] == 199
    assert len(updates) < 150


def test_nobody_needs_to_subscribe() -> None:
    with ReconstructionPublisher("tcp://127.0.0.1:0") as publisher:
        publisher.publish(volume(1), update=0, axis_col=0.0)


def test_projections_arrive_in_order_with_their_end(subscribed) -> None:
    with ProjectionPublisher("tcp://127.0.0.1:0") as publisher:
        socket = subscribed(publisher.address)
        for index in range(3):
            frame = Frame(
                kind=FrameKind.PROJECTION, index=index, angle_rad=index / 2, pixels=np.zeros((2, 3)), acquired_s=0
            )
            publisher.publish(frame, np.full((2, 3), index, np.float32), axis_col=1.0)
        publisher.end()
        messages = [socket.recv() for _ in range(4) if socket.poll(5000)]
    images = [timage.decode(message) for message in messages[:3]]
    assert [(image.unique_id, image.rotation, image.image_type) for image in images] == [
        (index, index / 2, ImageType.PROJECTION) for index in range(3)
    ]
    assert messages[3] == timage.END_OF_DATA


def test_an_address_that_is_taken_is_a_configuration_error() -> None:
    with (
        ReconstructionPublisher("tcp://127.0.0.1:0") as first,
        pytest.raises(ConfigError, match=f"{first.address}: cannot publish there"),
    ):
        ReconstructionPublisher(first.address)
