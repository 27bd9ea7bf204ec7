"""The two wires of aps-mini-apps over ZeroMQ, each read and written."""

from ministream.transport._aps.daq_receiver import DaqReceiver
from ministream.transport._aps.daq_sender import DaqSender
from ministream.transport._aps.tracemq_receiver import TraceMqReceiver
from ministream.transport._aps.tracemq_server import TraceMqServer

__all__ = ["DaqReceiver", "DaqSender", "TraceMqReceiver", "TraceMqServer"]
