"""What a restart needs is offered and taken back: a run goes on to the same image, bit for bit."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest

from ministream import registry
from ministream.config import PrepSection, ReconSection, WindowSection
from ministream.model import FrameKind
from ministream.prep.corrections import Corrector
from ministream.recon import open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.pace import Pace
from ministream.recon.weights import Alone
from ministream.recon.window import Window
from ministream.state import State, bare

ALGORITHMS = registry.names("ministream.recon.algorithms")
N, SLICES, STEP, LENGTH, PROJECTIONS = 24, 3, 5, 10, 30

rng = np.random.default_rng(8)
COUNTS = {
    FrameKind.FLAT: rng.integers(900, 1000, (4, SLICES, N)).astype("<u2"),
    FrameKind.DARK: rng.integers(0, 10, (2, SLICES, N)).astype("<u2"),
    FrameKind.PROJECTION: rng.integers(300, 900, (PROJECTIONS, SLICES, N)).astype("<u2"),
}


class Rank:
    """All of a run that has state and arithmetic, on one rank."""

    def __init__(self, kind: str, options: dict) -> None:
        geometry = Geometry(n=N, cols=N, axis_col=11.3)
        self.window = Window(length=LENGTH, step=STEP, cols=N, slices=SLICES)
        self.corrector = Corrector(rows=SLICES, cols=N, options=PrepSection())
        self.algorithm = open_algorithm(ReconSection.model_validate({"kind": kind, **options}), geometry, SLICES)
        self.image = self.algorithm.backend.new_image(geometry, SLICES)

    def calibrate(self) -> None:
        for kind in (FrameKind.DARK, FrameKind.FLAT):
            for pixels in COUNTS[kind]:
                self.corrector.add(kind, pixels)

    def feed(self, first: int, stop: int) -> None:
        for index in range(first, stop):
            self.corrector.correct(COUNTS[FrameKind.PROJECTION][index], self.window.slot(index, index * np.pi / 13))
            if self.window.due:
                self.algorithm.update(self.image, self.window, 2)
                self.window.updated()

    def parts(self) -> dict:
        return {"window": self.window, "corrector": self.corrector, "algorithm": self.algorithm}

    def saved(self) -> dict[str, dict]:
        return copy.deepcopy({name: bare(part.state()) for name, part in self.parts().items()})

    def restore(self, saved: dict[str, dict], image: np.ndarray) -> None:
        for name, part in self.parts().items():
            part.restore(saved[name])
        self.algorithm.backend.copy(self.image, image)


@pytest.mark.parametrize("at", [3, 5, 17, 22])
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_run_goes_on_to_the_same_image(kind, at):
    options = {"seed_fbp": True} if kind == "sirt" else {}
    whole, first, second = (Rank(kind, options) for _ in range(3))
    whole.calibrate()
    whole.feed(0, PROJECTIONS)
    first.calibrate()
    first.feed(0, at)
    saved, image = first.saved(), first.image.copy()
    first.feed(at, PROJECTIONS)  # what was saved must not change with it
    second.restore(saved, image)
    second.feed(at, PROJECTIONS)
    assert np.any(whole.image)
    assert second.window.indices == whole.window.indices
    if kind == "fbp":  # which takes its window in anew
        np.testing.assert_allclose(second.image, whole.image, rtol=1e-4, atol=1e-7)
    else:
        assert np.array_equal(second.image, whole.image)


def test_flats_that_come_after_a_restart_start_a_new_set():
    before, after = (Corrector(rows=SLICES, cols=N, options=PrepSection()) for _ in range(2))
    for kind in (FrameKind.DARK, FrameKind.FLAT):
        for pixels in COUNTS[kind]:
            before.add(kind, pixels)
    before.settle()
    after.restore(copy.deepcopy(bare(before.state())))
    outs = []
    for corrector in (before, after):
        corrector.add(FrameKind.FLAT, COUNTS[FrameKind.FLAT][0] // 2)
        outs.append(np.zeros((N, SLICES), np.float32))
        corrector.correct(COUNTS[FrameKind.PROJECTION][0], outs[-1])
    assert np.array_equal(*outs)


def test_the_pace_goes_on():
    section = WindowSection(length=8, step=4, iterations=50, budget="adapt")
    before, after = Pace(section, 4), Pace(section, 4)
    before.learn(iterations=2, update_s=0.2, other_s=0.1, period_s=1.0, behind=1)
    after.restore(bare(before.state()))
    assert after.iterations() == before.iterations() > 1


def test_arrays_are_offered_without_padding():
    def shapes(state: State) -> list:
        return [value.shape for value in bare(state).values() if isinstance(value, np.ndarray)]

    rank = Rank("sirt", {})
    rank.calibrate()
    rank.feed(0, 4)
    assert (4, N, SLICES) in shapes(rank.window.state())


def test_waiting_for_other_ranks_is_not_projecting(monkeypatch):
    """A gather ends when it is read, within the projection that needs it."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Alone):
        def whole(self, mine, count):
            def wait():
                clock[0] += 1.0
                return mine

            return wait

    algorithm = open_algorithm(ReconSection(), Geometry(n=N, cols=N, axis_col=11.3), SLICES, Slow())
    window = Window(length=LENGTH, step=STEP, cols=N, slices=SLICES)
    for index in range(LENGTH):
        window.slot(index, index * np.pi / LENGTH)[:] = 1.0
    report = algorithm.update(algorithm.backend.new_image(algorithm.geometry, SLICES), window, 1)
    assert clock[0] > 0
    assert (report.forward_s, report.back_s) == (0.0, 0.0)
