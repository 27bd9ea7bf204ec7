"""How many iterations an update gets."""

from __future__ import annotations

import pytest

from ministream.config import WindowSection
from ministream.recon.pace import Pace


def pace(**options: object) -> Pace:
    return Pace(WindowSection.model_validate({"iterations": 10, **options}), step=20)


def learn(pace: Pace, iterations: int, *, each_s: float = 0.1, period_s: float = 1.0, behind: int = 0) -> None:
    pace.learn(iterations=iterations, update_s=iterations * each_s, other_s=0.1, period_s=period_s, behind=behind)


def test_fixed_is_fixed() -> None:
    fixed = pace()
    assert fixed.iterations() == 10
    learn(fixed, 10, each_s=100.0)
    assert fixed.iterations() == 10
    assert "10 iterations" in str(fixed)


def test_adapt_measures_first_and_then_keeps_up() -> None:
    adapt = pace(budget="adapt")
    assert adapt.iterations() == 1
    learn(adapt, 1)
    assert adapt.iterations() == 8
    assert "0.8 s per update" in str(adapt)


@pytest.mark.parametrize(("period_s", "expected"), [(0.05, 1), (0.65, 4), (100.0, 10)])
def test_adapt_stays_between_one_and_the_most(period_s: float, expected: int) -> None:
    adapt = pace(budget="adapt")
    learn(adapt, 1, period_s=period_s)
    assert adapt.iterations() == expected


def test_adapt_does_less_when_behind_and_more_again_later() -> None:
    adapt = pace(budget="adapt")
    learn(adapt, 1, behind=10)
    assert adapt.iterations() == 3
    learn(adapt, 3, behind=100)
    assert adapt.iterations() == 1
    learn(adapt, 1)
    assert adapt.iterations() == 8


def test_a_time_budget() -> None:
    timed = pace(budget_s=0.45)
    assert timed.iterations() == 1
    learn(timed, 1)
    assert timed.iterations() == 4


def test_an_update_ends_when_the_residual_hardly_falls() -> None:
    picky = pace(stop_change=0.1)
    for _ in range(2):
        picky.iterations()
        assert picky.proceed(100.0)
        assert picky.proceed(64.0)
        assert not picky.proceed(63.0)


def test_without_a_rule_it_goes_on() -> None:
    assert all(pace().proceed(norm2) for norm2 in (1.0, 1.0, 2.0))
