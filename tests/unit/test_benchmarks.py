"""The frame of the benchmarks: how they are found, what a result carries, and how a study becomes a model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import __main__ as frame
from benchmarks import machine, model, scaling
from benchmarks._pair import Case

PROJECT = Path(__file__).resolve().parents[2]


def case(**changes: int) -> Case:
    known = {"n": 100, "rows": 32, "ranks": 1, "threads": 1, "projections": 96, "length": 64, "step": 32}
    return Case(**({"iterations": 1} | known | changes))


def point(chosen: Case, gups: float = 1.0, mode: str = "strong") -> dict:
    return {"mode": mode, **asdict(chosen), "gups": gups}


def test_every_benchmark_has_a_main() -> None:
    for name in frame.names():
        text = (PROJECT / "benchmarks" / f"{name}.py").read_text()
        assert "def main(argv: list[str]) -> int:" in text, name


def test_an_unknown_benchmark_lists_the_known() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "scaling" in ran.stderr
    assert "machine" not in ran.stderr


def test_a_result_carries_command_commit_and_machine(tmp_path: Path) -> None:
    file = machine.save("storage", ["--n", "512", "a b"], [{"n": 512, "rate": 1.5}], busy=0.0, folder=tmp_path)
    result = json.loads(file.read_text())
    assert result["command"] == "python -m benchmarks storage --n 512 'a b'"
    assert result["rows"] == [{"n": 512, "rate": 1.5}]
    assert result["machine"]["cores"] >= 1
    assert len(result["commit"].removesuffix("-dirty")) == 12 or result["commit"] == "unknown"
    assert result["quiet"]


def test_a_busy_machine_is_called_busy(tmp_path: Path) -> None:
    file = machine.save("storage", [], [], busy=1.7, folder=tmp_path)
    assert json.loads(file.read_text())["quiet"] is False


def test_pixel_updates_count_what_the_window_holds() -> None:
    # Updates after 32, 64 and 96 projections hold 32, 64 and 64 of them.
    assert case().pixel_updates == 100**2 * 32 * (32 + 64 + 64)
    # A rest that does not fill a step brings one more update.
    assert case(projections=100).pixel_updates == 100**2 * 32 * (32 + 64 + 64 + 64)
    assert case(iterations=3).pixel_updates == 3 * case().pixel_updates


def test_cases_have_names_of_their_own() -> None:
    cases = [case(), case(ranks=2), case(threads=2), case(rows=64), case(length=32), case(step=16), case(iterations=2)]
    assert len({one.name for one in cases}) == len(cases)


@pytest.mark.parametrize(("mode", "rows"), [("strong", 32), ("weak", 64)])
def test_efficiency_is_relative_to_the_fewest_cores_of_a_series(mode: str, rows: int) -> None:
    points = [point(case(), 1.0, mode), point(case(ranks=2, rows=rows), 1.6, mode), point(case(n=50), 9.0, mode)]
    assert [scaling.efficiency(one, points) for one in points] == pytest.approx([1.0, 0.8, 1.0])


def test_the_constants_of_a_machine_are_found_again() -> None:
    """Stage times that follow the model exactly give its constants back."""
    per_slice, shared, per_update = 2e-10, 3e-9, 0.01
    points = []
    for rows in (16, 32, 64):
        for threads in (1, 2):
            one = point(case(rows=rows, threads=threads))
            visits = case(rows=rows).pixel_updates / rows / threads
            seconds = visits * (rows * per_slice + shared) + 3 * per_update
            points.append(one | {"stages": {name: {"max": seconds / 3} for name in ("forward", "back", "update")}})
    assert model._fit_update(points) == pytest.approx([per_slice, shared, per_update], rel=1e-6)


def test_a_study_of_one_slab_height_is_refused() -> None:
    stages = {name: {"max": 1.0} for name in ("forward", "back", "update")}
    with pytest.raises(SystemExit, match="several numbers of --slices"):
        model._fit_update([point(case(n=n)) | {"stages": stages} for n in (100, 100)])
