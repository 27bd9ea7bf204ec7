"""What a producer announces is judged before anything of that size is allocated."""

from __future__ import annotations

import re

import pytest

from ministream import config
from ministream.app.recon.assignment import assign
from ministream.cli import overrides
from ministream.errors import ConfigError
from tests.native_stream import make_scan


@pytest.mark.parametrize(
    ("announced", "window"),
    [
        ({"rows": 32768, "cols": 32768, "projections": 10}, {"length": 5}),
        ({"rows": 64, "cols": 64, "projections": 2**40}, {}),  # the window is the whole scan
    ],
)
def test_a_scan_that_needs_too_much_is_refused_and_the_remedy_works(announced: dict, window: dict) -> None:
    scan = make_scan(**announced)
    with pytest.raises(ConfigError, match=r"GiB are allowed. If the scan is meant") as refusal:
        assign(0, 4, config.load(None, {"window": window}), scan, 1)
    setting = re.search(r"--set (\S+)$", str(refusal.value))
    assert setting is not None
    allowed = config.load(None, overrides([setting[1]], window=window))
    assert assign(0, 4, allowed, scan, 1).n == announced["cols"]


def test_a_scan_of_today_is_not() -> None:
    assign(0, 4, config.Config(), make_scan(rows=2160, cols=2560, projections=3000), 1)
