"""The gate of a resumed run judges the scan as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ministream import config
from ministream.app.recon.assignment import Assignment, assign
from ministream.app.recon.gate import ScanGate
from ministream.model import FrameKind
from ministream.parallel import mpi
from ministream.parallel.row_scatter import SlabFrame
from ministream.prep.corrections import Corrector
from ministream.state import Slabwise, bare
from tests.odd_scans import COLS, DARK, DEGREES, FLAT, counts, good, line_integrals

ROWS, HALF = 16, DEGREES.size // 2
CALIBRATION = np.ones((5, ROWS, COLS), np.uint16)
# The sample turns about another column than the scan says: no projection shows it, only all of them together.
SCAN = good(
    data=counts(line_integrals(DEGREES, rows=ROWS)),
    flats=(FLAT + DARK) * CALIBRATION,
    darks=DARK * CALIBRATION,
    axis=35.5,
)


class Rank:
    """Corrector and gate of one of several ranks."""

    def __init__(self, rank: int, ranks: int) -> None:
        settings = config.load(None, {"prep": {"input": "counts"}})
        self.assignment: Assignment = assign(rank, ranks, settings, SCAN.scan, threads=1)
        rows = self.assignment.slab.rows
        self.corrector = Corrector(rows=rows, cols=COLS, options=settings.prep)
        self.gate = ScanGate(mpi.world(), self.assignment, self.corrector)
        self._out = np.zeros((COLS, rows), np.float32)

    def feed(self, first: int, stop: int) -> None:
        """The calibration frames, then the projections from `first` on."""
        for frame in SCAN.frames():
            pixels = np.ascontiguousarray(frame.pixels[self.assignment.slab.slice])
            if frame.kind is not FrameKind.PROJECTION:
                self.corrector.add(frame.kind, pixels, frame.position)
            elif first <= frame.index < stop:
                if not self.corrector.settled:
                    self.gate.settle()
                rows = SlabFrame(**{name: getattr(frame, name) for name in SlabFrame.__slots__} | {"pixels": pixels})
                self.gate.accepted(rows, self.corrector.correct(pixels, self._out, frame.position))

    def verdict(self) -> dict[str, Any]:
        self.gate.updated()
        self.gate.conclude(())
        return {found.code: found.text for found in self.gate.book.notices}


def cut(state: Any, rank: Rank) -> dict[str, Any]:
    """The state as a checkpoint gives it back to a rank."""
    slab = rank.assignment.slab.slice
    part = {name: value.array[:, slab] for name, value in state.items() if isinstance(value, Slabwise)}
    return bare(state) | part


@pytest.mark.parametrize("ranks", [1, 2, 5], ids="{0} ranks".format)
def test_the_verdict_is_that_of_a_run_without_interruption(ranks: int) -> None:
    whole, before = Rank(0, 1), Rank(0, 1)
    whole.feed(0, DEGREES.size)
    expected = whole.verdict()
    assert "axis-off" in expected
    before.feed(0, HALF)
    before.gate.updated()
    state = before.gate.state()
    for number in range(ranks):
        after = Rank(number, ranks)
        after.gate.restore(cut(state, after))
        after.feed(HALF, DEGREES.size)
        if ranks == 1:
            assert after.verdict() == expected
        elif after.corrector.sampled.size:
            assert "axis-off" in after.verdict()


def test_counts_and_notices_go_on() -> None:
    before, after = Rank(0, 1), Rank(0, 1)
    before.feed(0, DEGREES.size)
    before.verdict()
    after.gate.restore(cut(before.gate.state(), after))
    assert after.gate.book.notices == before.gate.book.notices
    after.gate.agree()
    np.testing.assert_array_equal(after.gate.state()["totals"], before.gate.state()["totals"])
