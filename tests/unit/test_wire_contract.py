"""What every wire keeps to, whichever module it is; the wires are those that the registry finds."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ministream import config, registry
from ministream.config import WIRES
from ministream.errors import ConfigError, PeerLostError
from ministream.model import Frame
from ministream.transport import Arrived, Ended, Event, Receiver, Wire, open_wire
from tests.native_stream import make_frames, make_scan
from tests.ports import free_ports

NAMES = registry.names(WIRES)
SENDING = [name for name in NAMES if registry.load(WIRES, name).Wire.sends]
LOOPBACK = "tcp://127.0.0.1:0"


def the_config(name: str, **changes: dict[str, Any]) -> config.Config:
    """A configuration for both ends of the wire `name`."""
    tables: dict[str, dict[str, Any]] = {
        "stream": {"wire": name, "connect_timeout_s": 10.0},
        "producer": {"wire": name if name in SENDING else "native", "listen": LOOPBACK, "peer_timeout_s": 10.0},
        "aps": {"pixel_dtype": "uint16"},
    }
    return config.load(None, {key: table | changes.get(key, {}) for key, table in tables.items()})


def the_wire(name: str, **changes: dict[str, Any]) -> Wire:
    return open_wire(name, the_config(name, **changes))


def take_all(receiver: Receiver) -> list[Event]:
    """Every event up to the one that ends the scan, each acknowledged."""
    receiver.scan()
    events: list[Event] = []
    while not events or isinstance(events[-1], Arrived):
        event = receiver.next(10.0)
        assert event is not None, "a wire ends with Ended or Lost"
        events.append(event)
        if isinstance(event, Arrived):
            receiver.ack(event.seq)
    return events


def in_order(frames: list[Frame]) -> list[tuple[Any, ...]]:
    """What a wire must not change, in an order of its own: a wire may reorder kinds, and number repetitions anew."""
    return sorted((frame.kind, round(frame.angle_rad, 6), frame.pixels.tobytes()) for frame in frames)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_a_wire(name):
    module = registry.load(WIRES, name)
    assert issubclass(module.Wire, Wire)
    assert module.__doc__


@pytest.mark.parametrize("name", SENDING)
@pytest.mark.parametrize("repeat", [1, 2])
def test_every_frame_arrives_as_it_was_sent(name, repeat):
    scan = make_scan()
    wire = the_wire(name, producer={"repeat": repeat})
    events: list[Event] = []
    frames = list(wire.played(lambda: make_frames(scan)))

    with wire.sender(scan) as sender:

        def receive() -> None:
            with wire.receiver(sender.addresses) as receiver:
                events.extend(take_all(receiver))

        thread = threading.Thread(target=receive)
        thread.start()
        for frame in frames:
            sender.send(frame)
        report = sender.finish()
        thread.join()
    assert isinstance(events[-1], Ended)
    arrived = [event.frame for event in events if isinstance(event, Arrived)]
    assert report.projections == events[-1].totals.projections == scan.projections * (repeat // wire.source_passes)
    assert in_order(arrived) == in_order(frames)


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_that_stays_away_is_named(name):
    port = free_ports(1)
    wire = the_wire(name, stream={"connect_timeout_s": 0.2})
    with wire.receiver([f"tcp://127.0.0.1:{port}"]) as receiver, pytest.raises(PeerLostError, match=str(port)):
        receiver.scan()


@pytest.mark.parametrize("name", SENDING)
def test_an_address_that_cannot_be_bound_is_named(name):
    with the_wire(name).sender(make_scan()) as sender:
        (taken, *_) = sender.addresses
        with pytest.raises(ConfigError, match=taken):
            the_wire(name, producer={"listen": taken}).sender(make_scan())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SENDING])
def test_a_wire_that_the_producer_job_cannot_send_is_refused_with_those_it_can(name):
    with pytest.raises(ConfigError, match=f"{name}.*choose {', '.join(SENDING)}"):
        config.load(None, {"producer": {"wire": name}})


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_knows_what_a_wire_can_do(name):
    wire = registry.load(WIRES, name).Wire
    stream = {"wire": name}
    if not wire.encrypts:
        with pytest.raises(ConfigError, match=f"{name}.*cannot be encrypted"):
            config.load(None, {"stream": stream | {"curve": "keys"}})
    if not wire.shares_rows:
        with pytest.raises(ConfigError, match=f"{name}.*leave out ingress"):
            config.load(None, {"stream": stream | {"ingress": 2}})
    assert config.load(None, {"stream": stream}).prep.minus_log is not wire.corrected


@pytest.mark.parametrize("key", ["producer", "stream"])
def test_an_unknown_wire_lists_the_known_ones(key):
    with pytest.raises(ConfigError, match=rf"{key}\.wire = 'telegraph': choose one of {', '.join(NAMES)}"):
        config.load(None, {key: {"wire": "telegraph"}})
