"""A bar on a terminal, or a line per update elsewhere; on rank 0."""

from __future__ import annotations

from ministream.app.recon.observing import Quiet, Run, Update
from ministream.monitor import Progress


class ShowProgress(Quiet):
    """Shows the progress of the job."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._progress = Progress(run.assignment.scan.projections, run.console)

    def updated(self, update: Update) -> None:
        """Show the new counts."""
        self._progress.update(
            used=update.ledger.used,
            received=update.ledger.received,
            updates=update.index,
            behind_s=update.behind_s,
        )

    def close(self) -> None:
        """Release the terminal."""
        self._progress.close()


def observe(run: Run) -> ShowProgress | None:
    """An instance on rank 0."""
    return ShowProgress(run) if run.comm.rank == 0 else None
