"""Reconstructed volumes on disk: HDF5 files written by all ranks together, or through rank 0."""

from ministream.storage.comm import Communicator
from ministream.storage.layout import scratch_bytes
from ministream.storage.reader import Volume, read_volume, snapshots
from ministream.storage.schema import VolumeState
from ministream.storage.writer import FINAL, VolumeWriter

__all__ = [
    "FINAL",
    "Communicator",
    "Volume",
    "VolumeState",
    "VolumeWriter",
    "read_volume",
    "scratch_bytes",
    "snapshots",
]
