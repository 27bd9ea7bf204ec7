"""Saves the state of the run periodically and on an early stop; removes it when the volume is complete."""

from __future__ import annotations

import time

from ministream import log
from ministream.app.recon.observing import Quiet, Run, Update, VolumeWritten
from ministream.storage import CheckpointWriter
from ministream.wire.session import MAX_FRAMES_HELD

_LOG = log.get(__name__)

# All ranks wait while their arrays are copied: at most this share of the run time, whatever the interval.
_SHARE = 0.01


class SaveCheckpoints(Quiet):
    """Saves on all ranks, overlapped with computation; the producer may discard the frames in a checkpoint."""

    stage = "checkpoint"
    collective = True

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run, self._section = run, run.assignment.config.checkpoint
        self._folder = run.assignment.config.checkpoint_folder
        self._comm = run.comm.dup()
        self._writer = CheckpointWriter(self._comm, self._folder, run.assignment.slab.first)
        self._began_at, self._blocked_s = time.monotonic(), 0.0
        self._position: int | None = None
        self._saved_to = run.position()
        # half of what a producer without an archive holds for a restart
        by_size = int(self._section.every_mib * 2**20 / run.assignment.scan.frame_bytes)
        self._most_unsaved = max(1, min(by_size, MAX_FRAMES_HELD // 2))

    def updated(self, update: Update) -> None:
        """Check the result of the last checkpoint, and start the next one if it is due."""
        self._settled(self._writer.settle())
        if self._due(update):
            self._begin(copied=True)

    def interrupted(self) -> None:
        """Save the current state, and wait until it is written."""
        if self._section.on_stop:
            self._settled(self._writer.finish())
            self._begin(copied=False)
            self._settled(self._writer.finish())
            if self._comm.rank == 0:
                _LOG.info("checkpoint written: continue with `ministream recon --resume %s`", self._folder)

    def finished(self, written: VolumeWritten) -> None:
        """Remove the checkpoints of a complete volume: there is nothing to resume."""
        if written.complete and not self._section.keep:
            self._writer.discard()
        else:
            self._settled(self._writer.finish())

    def poll(self) -> None:
        """Progress the pending checkpoint."""
        self._writer.poll()

    def close(self) -> None:
        """Abandon the pending checkpoint."""
        self._writer.close()

    def _due(self, update: Update) -> bool:
        section = self._section
        if section.every_updates and update.index % section.every_updates == 0:
            return True
        if not section.every_s or self._writer.busy:
            return False
        # rank 0 decides, because the clocks of the ranks differ, and it alone knows the position
        passed_s = time.monotonic() - self._began_at
        wanted = passed_s >= section.every_s or self._run.position() - self._saved_to >= self._most_unsaved
        return self._comm.bcast(wanted and passed_s >= self._blocked_s / _SHARE)

    def _begin(self, *, copied: bool) -> None:
        self._began_at = time.monotonic()
        position = self._saved_to = self._run.position()
        self._writer.begin(self._run.state(), copied=copied)
        self._position, self._blocked_s = position, time.monotonic() - self._began_at

    def _settled(self, completed: bool) -> None:
        if completed and self._position is not None:
            self._run.saved(self._position)
            self._position = None


def observe(run: Run) -> SaveCheckpoints | None:
    """An instance on every rank if checkpoints are configured."""
    section = run.assignment.config.checkpoint
    return SaveCheckpoints(run) if section.periodic or section.on_stop else None
