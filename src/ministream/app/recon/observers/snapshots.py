"""Writes the image every `[window] write_freq` updates, and when an operator asks, overlapped with computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ministream.app.recon.observing import Quiet, Run, Update, VolumeWritten


class WriteSnapshots(Quiet):
    """Writes on all ranks; a snapshot that fails is skipped."""

    stage = "write"
    collective = True

    def __init__(self, run: Run, every: int) -> None:
        super().__init__()
        self._writer, self._every = run.writer, every

    def updated(self, update: Update) -> None:
        """Check the result of the last snapshot, and start the next one if it is due."""
        self._writer.settle()
        if update.snapshot or (self._every and update.index % self._every == 0):
            self._files.append(self._writer.snapshot(update.index, update.image, update.state))

    def finished(self, written: VolumeWritten) -> None:
        """Check the result of the last snapshot."""
        self._writer.settle()

    def poll(self) -> None:
        """Progress the pending snapshot."""
        self._writer.poll()

    @property
    def files(self) -> Sequence[Path]:
        """The snapshots that are written or pending."""
        return [path for path in self._files if path not in self._writer.lost]


def observe(run: Run) -> WriteSnapshots | None:
    """An instance on every rank if snapshots are configured, or an operator can ask for them."""
    every, steered = run.assignment.config.window.write_freq, run.assignment.config.output.live is not None
    return WriteSnapshots(run, every) if every or steered else None
