"""Quality of every update against a reference volume, as `quality.csv` and at the end as a picture."""

from __future__ import annotations

from ministream.app.recon.observing import Quiet, Run, Update, VolumeWritten
from ministream.monitor import curves
from ministream.quality import LiveQuality


class FollowQuality(Quiet):
    """Compares on all ranks; rank 0 writes the table."""

    stage = "quality"
    collective = True

    def __init__(self, run: Run) -> None:
        super().__init__()
        output = run.assignment.config.output
        self._run, self._directory, self._output = run, output.directory, output
        self._table = LiveQuality(output.directory / "quality.csv")

    def updated(self, update: Update) -> None:
        """Measure, and append a row."""
        comparison = self._run.comparison
        sums = comparison.sums(update.image, self._run.shown_at()) if comparison.live else None
        if sums is not None:
            with self._run.comm.together():
                if self._run.comm.rank == 0:
                    self._run.comparison.newest = self._table.add(
                        sums,
                        update=update.index,
                        projections=update.ledger.used,
                        seconds=update.elapsed_s,
                    )

    def finished(self, written: VolumeWritten) -> None:
        """Draw the table."""
        with self._run.comm.together():
            if self._run.comm.rank == 0 and self._table.rows and self._output.pictures:
                path = self._directory / "quality.png"
                curves.quality(self._table.rows, path, str(self._output.reference))
                self._files.append(path)


def observe(run: Run) -> FollowQuality | None:
    """An instance on every rank if a reference is configured."""
    return FollowQuality(run) if run.comparison.live else None
