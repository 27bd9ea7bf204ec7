"""Checks whether a recorded scan can be reconstructed: the whole plausibility gate on a file, no reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ministream.app.recon.assignment import Assignment, assign
from ministream.app.recon.axis_search import GivenAxis
from ministream.app.recon.gate import ScanGate, mask_of
from ministream.config import Config
from ministream.errors import ExitCode, InputError
from ministream.model import Frame, FrameKind, Notice, Scan
from ministream.parallel import mpi
from ministream.parallel.row_scatter import SlabFrame
from ministream.plausibility.projections import never_written
from ministream.plausibility.record import SkippedProjection
from ministream.prep.corrections import Corrector
from ministream.source import Source, open_source


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanReport:
    """The gate's result for a scan.

    `warnings` are the findings, `accepted` the codes of those that the user has acknowledged; `flaw` says why a
    reconstruction would not be complete, `refused` why there would be none; both are empty otherwise.
    """

    scan: Scan
    n: int
    warnings: tuple[Notice, ...]
    accepted: tuple[str, ...]
    flaw: str
    refused: str

    @property
    def exit_code(self) -> ExitCode:
        """0: no warnings, or all accepted; 2: refused; 3: with warnings."""
        if self.refused:
            return ExitCode.USAGE
        odd = {warning.code for warning in self.warnings} - set(self.accepted)
        return ExitCode.INCOMPLETE if odd or self.flaw else ExitCode.COMPLETE


def check_scan(config: Config) -> ScanReport:
    """Read every frame of the configured source and check it as a run would.

    Raises ConfigError for a wrong configuration and InputError for a file that cannot be read as a scan.
    """
    with open_source(config.source, order="sequential", repeat=1) as source:
        scan = source.describe()
        assignment = assign(0, 1, config, scan, threads=1)
        mask = mask_of(config.prep.mask, assignment)
        corrector = Corrector(rows=scan.rows, cols=scan.cols, options=config.prep, mask=mask)
        gate = ScanGate(mpi.world(), assignment, corrector)
        refused = ""
        try:
            _judge(source, assignment, gate, corrector)
        except InputError as error:
            refused = str(error)
        flaw = gate.flaw or (f"{source.dropped} projections are left out" if source.dropped else "")
        return ScanReport(
            scan=scan,
            n=assignment.n,
            warnings=gate.book.notices,
            accepted=gate.book.accepted,
            flaw=flaw,
            refused=refused,
        )


def _judge(source: Source, assignment: Assignment, gate: ScanGate, corrector: Corrector) -> None:
    scan, axis = assignment.scan, GivenAxis(mpi.world(), assignment)
    gate.started()
    unwritten: list[SkippedProjection] = []
    integrals = np.zeros((scan.cols, scan.rows), np.float32)
    for frame in source.frames():
        if frame.kind is not FrameKind.PROJECTION:
            corrector.add(frame.kind, frame.pixels, frame.position)
        elif never_written(frame.pixels):
            unwritten.append(SkippedProjection(frame.index, frame.position))
        else:
            if not corrector.settled:
                gate.settle()
            rows, mended = _whole(frame), corrector.correct(frame.pixels, integrals, frame.position)
            axis.accepted(rows, integrals)
            gate.accepted(rows, mended)
    gate.updated()
    gate.conclude(unwritten, found=axis.notices(assignment.axis_col))


def _whole(frame: Frame) -> SlabFrame:
    """All rows of a frame, as on a single rank."""
    return SlabFrame(
        kind=frame.kind,
        index=frame.index,
        angle_rad=frame.angle_rad,
        acquired_s=frame.acquired_s,
        position=frame.position,
        pixels=frame.pixels,
    )
