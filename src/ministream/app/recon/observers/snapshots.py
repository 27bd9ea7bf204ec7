"""The image on disk every `[window] write_freq` updates, written while the ranks compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ministream.app.recon.observing import Quiet, Run, Update, Written


class WriteSnapshots(Quiet):
    """Writes on all ranks; a snapshot that fails is left out."""

    stage = "write"
    collective = True

    def __init__(self, run: Run, every: int) -> None:
        super().__init__()
        self._writer, self._every = run.writer, every

    def updated(self, update: Update) -> None:
        """Learn how the last one ended, and begin the next if it is due."""
        self._writer.settle()
        if update.index % self._every == 0:
            self._files.append(self._writer.snapshot(update.index, update.image, update.state))

    def finished(self, written: Written) -> None:
        """Learn how the last one ended."""
        self._writer.settle()

    def poll(self) -> None:
        """Move on what is being written."""
        self._writer.poll()

    @property
    def files(self) -> Sequence[Path]:
        """Those that were written, or are on their way."""
        return [path for path in self._files if path not in self._writer.lost]


def observe(run: Run) -> WriteSnapshots | None:
    """One on every rank where snapshots are asked for."""
    every = run.assignment.config.window.write_freq
    return WriteSnapshots(run, every) if every else None
