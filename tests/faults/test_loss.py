"""A reconstruction that is many times too slow for a detector: every projection that is dropped is listed."""

from __future__ import annotations

import pytest

from tests.faults.scans import Pair, volume
from tests.integration.jobs import Lab

PROJECTIONS = 600


@pytest.mark.parametrize("overflow", ["drop-oldest", pytest.param("decimate", marks=pytest.mark.long)])
def test_every_projection_that_a_policy_drops_is_listed(jobs: Lab, overflow: str) -> None:
    pair = Pair(jobs)
    settings = (f"source.projections={PROJECTIONS}", f"producer.overflow={overflow}", "producer.backlog=8")
    pair.produce("--rate", "600", *(word for setting in settings for word in ("--set", setting)))
    address = jobs.announced("producer", pair.producer)["data"]
    pair.reconstruct("--connect", address, "--set", "window.iterations=1000")
    assert (pair.producer.wait(), pair.recon.wait()) == (3, 3), pair.text
    summary = jobs.summary()
    counts, dropped = summary["projections"], summary["dropped"]
    indices = [index for each in dropped for index in each["indices"]]
    assert {each["reason"] for each in dropped} == {overflow}
    assert indices == sorted(set(indices))
    assert len(indices) == counts["dropped"] > PROJECTIONS // 2
    assert counts["used"] == counts["sent"] == PROJECTIONS - len(indices)
    assert volume(jobs.out).any()
