"""The frame of the benchmarks: how they are found, what a result carries, and how a study becomes a model."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import __main__ as frame
from benchmarks import compare, machine, model, scaling
from benchmarks._pair import Case
from ministream.performance import Layout, Machine, Workload, moments, update_parts_s

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


CONSTANTS = {
    "updates_per_core": 5e9,
    "slices_0": 6.0,
    "crowding": 0.2,
    "weights_per_core": 2e8,
    "seconds_per_pixel": 1e-8,
    "seconds_per_update": 0.01,
    "prep_pixels_per_rank": 1e8,
}


def study(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Points of a machine of two cores that does exactly what the model says."""
    monkeypatch.setattr(model, "_cores", lambda: 2)
    known = CONSTANTS | {"cores_per_node": 2, "ranks_per_node": 1, "memory_gib_per_node": 8, "write_bytes": 1e9}
    exact = Machine.model_validate(known | {"ingress_bytes": 1e9, "seconds_per_frame": 0, "scatter_bytes": 1e9})
    points = []
    for rows, n, ranks, threads in itertools.product((16, 32, 64), (100, 200), (1, 2), (1, 2)):
        if ranks * threads > 2:
            continue
        one = point(case(rows=rows, n=n, ranks=ranks, threads=threads))
        parts = [update_parts_s(exact, work(one), Layout(ranks=ranks, threads=threads), m) for m in moments(work(one))]
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        half = total["update"] / 2
        stages = {
            "forward": half,
            "back": half,
            "update": total["weights"],
            "prep": total["prep"],
            "idle": total["exchange"],
        }
        spread = {name: {"min": seconds, "max": seconds} for name, seconds in stages.items()}
        points.append(one | {"stages": spread, "seconds": sum(stages.values())})
    return points


def work(one: dict) -> Workload:
    return model._work(one)


def test_the_constants_of_a_machine_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage times that follow the model exactly give its constants back, and the model then meets the seconds."""
    points = study(monkeypatch)
    found = model.fit(points, 1e9)
    assert found == pytest.approx(CONSTANTS, rel=1e-3)
    others = {"cores_per_node": 2, "ranks_per_node": 1, "memory_gib_per_node": 8, "write_bytes": 1e9}
    known = Machine.model_validate(
        found | others | {"ingress_bytes": 1e9, "seconds_per_frame": 0, "scatter_bytes": 1e9}
    )
    for one in points:
        compared = model._compare(known, points, one)
        assert compared["error"] == pytest.approx(0, abs=1e-3)
        assert compared["left_out"] == pytest.approx(0, abs=1e-3)


def test_a_study_of_one_slab_height_is_refused() -> None:
    with pytest.raises(SystemExit, match="several numbers of --slices"):
        model.fit([point(case(n=n)) for n in (100, 100)], 1e9)


def test_a_scaling_point_says_where_the_time_went() -> None:
    """Shares, imbalance and bytes from what the ranks report."""
    ranks = [
        {"forward": 3.0, "back": 2.0, "update": 1.0, "prep": 0.0, "scatter": 0.5, "idle": 0.0},
        {"forward": 2.0, "back": 1.0, "update": 1.0, "prep": 0.0, "scatter": 0.5, "idle": 2.0},
    ]
    summary = {
        "seconds": 10.0,
        "projections_per_s": 9.6,
        "stages_per_rank": ranks,
        "bytes": 100,
        "bytes_scattered": 50,
        "bytes_written": 400,
        "write_hidden_s": 0.5,
        "peak_memory_mib": [30.0, 20.0],
    }
    found = scaling.describe("strong", case(ranks=2), summary, cores=1)
    assert found["communication_share"] == pytest.approx((0.5 + 2.5) / 2 / 10)
    assert found["imbalance"] == pytest.approx(6 / 5 - 1)
    assert found["oversubscribed"]
    assert found["memory_mib"] == {"min": 20.0, "median": 25.0, "max": 30.0}
    assert found["stages"]["idle"] == {"min": 0.0, "median": 1.0, "max": 2.0}
    assert (found["bytes_received"], found["bytes_scattered"], found["bytes_written"]) == (100, 50, 400)


def test_two_commits_are_compared_turn_by_turn() -> None:
    """The machine became half as fast in the second turn: the ratio of the commits is the same in both."""
    turns = [
        ({"n": 512, "rate": a, "same": 1}, {"n": 512, "rate": b, "same": 1}) for a, b in ((10.0, 15.0), (5.0, 7.5))
    ]
    (row,) = compare._ratios(turns, None)
    assert row["case"] == "n=512 same=1"
    assert (row["column"], row["a"], row["b"]) == ("rate", 7.5, 11.25)
    assert row["ratio"] == row["smallest"] == row["largest"] == 1.5
