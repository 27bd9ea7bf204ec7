"""One bit changes on the way: the volume is right all the same, or the jobs say that it is not complete."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cable import Forger
from tests.faults.scans import Pair, volume
from tests.integration.jobs import Lab

# Of the bytes that the producer sends, those after the description of the scan: flats, darks, projections, END.
SHORT = [9_001, 30_011, 60_013]
LONG = [pytest.param(after, marks=pytest.mark.long) for after in range(4_001, 70_000, 1_999)]


@pytest.mark.parametrize("after", [*SHORT, *LONG])
def test_a_changed_bit_never_passes_for_good(jobs: Lab, undisturbed: NDArray[np.float32], after: int) -> None:
    forgers = []

    def through(address: str) -> str:
        forgers.append(Forger(address, after))
        return forgers[0].address

    pair = Pair(jobs).directly(through=through, recon=("--outage-timeout", "5"))
    with forgers[0] as forger:
        codes = pair.producer.wait(), pair.recon.wait()
        assert forger.left <= 0, "the bit was never reached"
    if codes == (0, 0):
        np.testing.assert_array_equal(volume(jobs.out), undisturbed)
    else:
        assert codes[1] != 0, pair.text
        assert "ministream: " in pair.recon.text
        assert not (jobs.out / "summary.json").exists() or not jobs.summary()["complete"]
