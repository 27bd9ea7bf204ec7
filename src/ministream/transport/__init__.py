"""Carries the native stream: `FrameSender` at the producer, `FrameReceiver` at the reconstruction job.

A module with `SCHEMES`, `listen` and `dial` is a transport for it; the scheme of a URL picks one.
"""

from ministream.transport._aps import DaqReceiver, DaqSender, TraceMqReceiver, TraceMqServer
from ministream.transport._channel import Channel, Listener, dial, listen
from ministream.transport._receiver import Event, FrameReceiver, ReceiverReport
from ministream.transport._sender import FrameSender, SenderReport
from ministream.wire.session import Arrived, Ended, Lost, Refused

__all__ = [
    "Arrived",
    "Channel",
    "DaqReceiver",
    "DaqSender",
    "Ended",
    "Event",
    "FrameReceiver",
    "FrameSender",
    "Listener",
    "Lost",
    "ReceiverReport",
    "Refused",
    "SenderReport",
    "TraceMqReceiver",
    "TraceMqServer",
    "dial",
    "listen",
]
