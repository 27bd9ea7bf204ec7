"""The plausibility gate of a run: every rank measures its own rows, rank 0 evaluates the combined result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream.app.recon.assignment import Assignment, is_half_acquisition
from ministream.errors import InputError
from ministream.model import FrameKind, Notice, notice
from ministream.parallel.mpi import Comm
from ministream.parallel.row_scatter import SlabFrame
from ministream.plausibility import NoticeBook, angles, calibration, moments, projections
from ministream.plausibility.record import ProjectionRecord, ProjectionTable, SkippedProjection
from ministream.prep import kernels
from ministream.prep.corrections import Corrector, Mended
from ministream.state import Slabwise, State


def mask_of(path: Path | None, assignment: Assignment) -> NDArray[np.bool_] | None:
    """This rank's rows of the mask file. Raises InputError for a file that is not a mask of this detector."""
    if path is None:
        return None
    try:
        mask = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a mask: {error}. Save one with numpy.save(file, mask)") from error
    expected = (assignment.scan.rows, assignment.scan.cols)
    if mask.shape != expected or mask.dtype.kind not in "bu":
        raise InputError(f"{path}: holds {mask.dtype} {mask.shape}, expected bool {expected}, true for pixels to mend")
    return np.array(mask[assignment.slab.slice], bool)


class ScanGate:
    """One rank's part of the gate; `book` is complete on rank 0 alone.

    After `conclude`, `flaw` holds on rank 0 the reason why the run is not complete, if any.
    """

    def __init__(self, comm: Comm, assignment: Assignment, corrector: Corrector) -> None:
        self._comm, self._assignment, self._corrector = comm, assignment, corrector
        section, scan = assignment.config.plausibility, assignment.scan
        self.book = NoticeBook(strict=section.strict and comm.rank == 0, accept=section.accept)
        self._record = ProjectionRecord(rows=corrector.sampled.size, cols=scan.cols)
        self._mended = Mended()
        self._pixels = self._levelled = 0
        self._negative = False
        self._totals = np.zeros(len(self._mended) + 2)
        self._blank_rows = np.zeros(0, np.int64)
        self._continued = False
        self.flaw = ""

    def started(self) -> None:
        """Add the notices found by the source; collective."""
        with self._comm.together():
            if self._comm.rank == 0:
                self.book.add(self._assignment.scan.notices)

    def settle(self) -> None:
        """Check the calibration frames and compute the fields from the valid ones; collective. Raises InputError."""
        levels = {kind: self._levels(kind) for kind in (FrameKind.FLAT, FrameKind.DARK)}
        with self._comm.together():
            left_out: dict[FrameKind, frozenset[int]] = {}
            if self._assignment.config.prep.flat_dark:
                if self._comm.rank == 0 and not self._continued:
                    scan = self._assignment.scan
                    expected = {FrameKind.FLAT: scan.flats, FrameKind.DARK: scan.darks}
                    self.book.add(calibration.late({kind: len(levels[kind].positions) for kind in levels}, expected))
                left_out, found = calibration.judge(levels[FrameKind.FLAT], levels[FrameKind.DARK])
                if self._comm.rank == 0:
                    self.book.add(found)
            self._corrector.settle(left_out)

    def accepted(self, rows: SlabFrame, mended: Mended) -> None:
        """Measure the projection that the corrector has just processed."""
        corrector = self._corrector
        self._record.add(rows.index, rows.angle_rad, rows.position, corrector.measures, corrector.blank_rows)
        if any(mended):
            self._mended = self._mended.plus(mended)
        self._pixels += rows.pixels.size
        if rows.pixels.dtype.kind == "i" and not self._negative:
            self._negative = bool(rows.pixels[self._corrector.sampled].min(initial=0) < 0)

    def updated(self) -> None:
        """Check that the values match the input type in `[prep]`; collective. Raises InputError."""
        shares, negative = self._shares()
        total, count = self._comm.sum(np.array(self._record.level(self._levelled), np.float64))
        level, self._levelled = float(total / max(count, 1)), self._record.count
        prep = self._assignment.config.prep
        with self._comm.together():
            angles.check_turning(self._record.angle_rad)
            projections.check_input(
                shares["starved"], level, flat_dark=prep.flat_dark, minus_log=prep.minus_log, signed=negative
            )

    def conclude(
        self,
        unwritten: Sequence[SkippedProjection],
        lost: Sequence[int] = (),
        *,
        axis_col: float | None = None,
        found: Sequence[Notice] = (),
    ) -> None:
        """Check the whole scan; collective. Raises InputError where the volume would be wrong, or the run is strict.

        On rank 0, `unwritten` are the projections that were skipped because they are empty, `lost` those that never
        reached the producer. `axis_col` is the axis where it was found in the projections, `found` what was odd about
        it.
        """
        shares, _ = self._shares()
        table = self._table()
        fits = self._fits(table)
        with self._comm.together():
            if self._comm.rank == 0 and len(table):
                self._judge(table, fits, axis_col)
                self.book.add(found)
                self.book.add(self._mended_notices(shares))
                left_out = projections.unwritten(unwritten)
                self.book.add([*left_out, *projections.lost(lost)])
                self.flaw = self.flaw or (left_out[0].text if left_out else "")

    def _judge(self, table: ProjectionTable, fits: moments.RowFits, axis_col: float | None) -> None:
        found = self._judged(table, fits, axis_col)
        self.book.add(found)
        flaws = [one for one in found if one.code in (angles.UNIT_CODE, projections.BLANK_CODE)]
        self.flaw = next((one.text for one in flaws if not self.book.accepts(one.code)), self.flaw)

    def agree(self) -> None:
        """Sum the mended pixels and blank rows of all ranks, for the state; collective."""
        self._blank_rows = self._comm.sum(self._record.blank_rows.astype(np.float64)).astype(np.int64)
        self._totals = self._comm.sum(np.array([*self._mended, self._pixels, self._negative], np.float64))

    def state(self) -> State:
        """The measures of all projections, the notices so far, and the counts of the last `agree`."""
        measures = self._record.measures
        rows = np.full((len(measures), self._assignment.slab.rows, measures.shape[2]), np.nan, np.float32)
        rows[:, self._corrector.sampled] = measures
        return {
            "index": self._record.index,
            "angle_rad": self._record.angle_rad,
            "position": self._record.position,
            "measures": Slabwise(array=rows, axis=1),
            "blank_rows": np.pad(self._blank_rows, (0, len(measures) - self._blank_rows.size)),
            "levelled": self._levelled,
            "totals": self._totals,
            "notices": json.dumps([dataclasses.asdict(each) for each in self.book.notices]),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`; the rows sampled before are sampled from now on."""
        measures = state["measures"]
        self._continued = len(measures) > 0
        if self._continued:
            self._corrector.sample(np.flatnonzero(~np.isnan(measures[0, :, 0])))
            self._record = ProjectionRecord.of(
                state["index"],
                state["angle_rad"],
                state["position"],
                measures[:, self._corrector.sampled],
                state["blank_rows"] if self._comm.rank == 0 else np.zeros(len(measures), np.int64),
                cols=self._assignment.scan.cols,
            )
        self._levelled = state["levelled"]
        if self._comm.rank == 0:
            *mended, pixels, negative = state["totals"].tolist()
            self._mended, self._pixels, self._negative = Mended(*map(int, mended)), int(pixels), negative > 0
            self.book.restore(
                Notice(**{**each, "frames": tuple(each["frames"])}) for each in json.loads(state["notices"])
            )

    def _judged(self, table: ProjectionTable, fits: moments.RowFits, axis_col: float | None) -> list[Notice]:
        scan, prep = self._assignment.scan, self._assignment.config.prep
        known = axis_col is not None or not self._assignment.config.recon.finds_axis
        axis_col = self._assignment.axis_col if axis_col is None else axis_col
        found = angles.judge(table.only(np.argsort(table.index)), cols=scan.cols, unit_decided=self._unit_decided)
        half = is_half_acquisition(self._assignment.config, scan, axis_col)
        if half:
            found += angles.judge_half_acquisition(table.angle_rad)
            table = table.without_edge("left" if axis_col < (scan.cols - 1) / 2 else "right")
        elif not self._axis_decided:
            projections.check_sides(table, cols=scan.cols)
        noise = moments.pixel_noise(self._record.moments(np.ones(len(table), bool)), kernels.edge_cols(scan.cols))
        found += projections.judge(table, minus_log=prep.minus_log, noise=float(np.median(noise)))
        cut = half or any(noticed.code in ("sample-truncated", "air-not-zero") for noticed in found)
        if known and not cut and moments.applicable(table.angle_rad):
            found += moments.judge(fits, cols=scan.cols, axis_col=axis_col)
        elif moments.applicable(table.angle_rad):
            found += moments.judge_order(fits)
        return found

    @property
    def _axis_decided(self) -> bool:
        """Whether user, scan or projections say where the rotation axis is; otherwise the middle is assumed."""
        recon = self._assignment.config.recon
        return recon.finds_axis or recon.axis_col is not None or self._assignment.scan.axis_col is not None

    @property
    def _unit_decided(self) -> bool:
        """Only the native wire carries the angle unit; on the other wires it is unknown unless configured."""
        settings = self._assignment.config
        return settings.stream.wire == "native" or settings.aps.angle_unit is not None

    def _mended_notices(self, shares: dict[str, float]) -> list[Notice]:
        total, limit = sum(shares.values()), self._assignment.config.prep.mended_limit
        if total <= limit:
            return []
        causes = ", ".join(f"{cause} {share:.2%}" for cause, share in shares.items() if share)
        self.flaw = f"{total:.1%} of the pixels were mended ({causes}), more than prep.mended_limit = {limit:g}"
        return [
            notice(
                "pixels-mended",
                f"{self.flaw}: the run is not complete. Raise the limit with --set "
                f"prep.mended_limit={total + 0.01:.2f} if the volume is good; --set prep.input=attenuation or "
                "transmission if the data are not counts.",
                numbers=shares,
            )
        ]

    def _levels(self, kind: FrameKind) -> calibration.CalibrationLevels:
        sums, uniform, positions = self._corrector.calibration(kind)
        totals = self._comm.sum(np.array([*sums, *uniform.astype(float)]))
        scan = self._assignment.scan
        return calibration.CalibrationLevels(
            means=totals[: sums.size] / (scan.rows * scan.cols),
            uniform=totals[sums.size :] == self._comm.size,
            positions=positions,
        )

    def _shares(self) -> tuple[dict[str, float], bool]:
        """The share of mended pixels of all ranks by cause, and whether any pixel of a signed dtype was negative."""
        self.agree()
        total = self._totals
        pixels = max(total[-2], 1.0)
        return {cause: float(total[k] / pixels) for k, cause in enumerate(Mended._fields)}, bool(total[-1])

    def _table(self) -> ProjectionTable:
        return self._record.table(self._comm.sum(self._record.sums()))

    def _fits(self, table: ProjectionTable) -> moments.RowFits:
        """The fits of all ranks' sampled rows, on every rank."""
        kept = ~projections.blocked(table) if len(table) else np.zeros(0, bool)
        mine = np.zeros((0, len(moments.RowFits.__slots__)))
        if moments.applicable(table.angle_rad[kept]):
            rows = self._corrector.sampled + self._assignment.slab.first
            cols = self._assignment.scan.cols
            edge_cols = kernels.edge_cols(cols)
            mine = moments.fit(self._record.moments(kept), rows=rows, cols=cols, edge_cols=edge_cols).as_array()
        return moments.RowFits.of(np.concatenate(self._comm.allgather(mine)))
