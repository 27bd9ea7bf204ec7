"""Reconstructed volumes on disk: HDF5 files written by all ranks together, or through rank 0."""

from ministream.storage.checkpoint import Checkpoint, checkpoints, open_newest
from ministream.storage.checkpoint_writer import CheckpointWriter
from ministream.storage.comm import Communicator
from ministream.storage.layout import scratch_bytes
from ministream.storage.reader import Volume, read_volume, snapshots
from ministream.storage.schema import VolumeState
from ministream.storage.stack import write_stack
from ministream.storage.writer import FINAL, VolumeWriter

__all__ = [
    "FINAL",
    "Checkpoint",
    "CheckpointWriter",
    "Communicator",
    "Volume",
    "VolumeState",
    "VolumeWriter",
    "checkpoints",
    "open_newest",
    "read_volume",
    "scratch_bytes",
    "snapshots",
    "write_stack",
]
