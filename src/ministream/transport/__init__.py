"""Wires: how a scan travels from the producer to its receivers. One module is one wire, sender and receiver.

A wire's module has a class `Wire` (see `transport._wire.Wire`); nothing else lists it. `listen` and `dial` make the
connections of the native wire and of the live view; `transport._channels` has one module for each scheme of a URL.
"""

from __future__ import annotations

from ministream import registry
from ministream.config import Config
from ministream.transport._channels import Channel, Listener, dial, listen
from ministream.transport._wire import (
    Event,
    Receiver,
    ReceiverReport,
    ReceivingRank,
    Sender,
    SenderReport,
    StreamReport,
    Wire,
)
from ministream.wire.session import Arrived, Ended, Lost, Omitted, Refused

__all__ = [
    "Arrived",
    "Channel",
    "Ended",
    "Event",
    "Listener",
    "Lost",
    "Omitted",
    "Receiver",
    "ReceiverReport",
    "ReceivingRank",
    "Refused",
    "Sender",
    "SenderReport",
    "StreamReport",
    "Wire",
    "dial",
    "listen",
    "open_wire",
]


def open_wire(name: str, config: Config) -> Wire:
    """The wire `name` as `config` sets it up. Raises ConfigError for an unknown one (listing the known ones)."""
    wire: Wire = registry.load(__name__, name).Wire(config)
    return wire
