"""Waiting for what must happen.

A limit is there to tell a hang from a slow machine: many times what is usual, and nobody waits for it but a test that
fails. How fast something is, benchmarks measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_S = 150.0
# looks come closely at first, later so far apart that looking costs nothing
_FIRST_LOOK_S, _LAST_LOOK_S = 0.01, 0.2


def eventually(condition: Callable[[], object], what: Callable[[], str] | str = "", limit_s: float = HANG_S) -> None:
    """Return once `condition()` is true. When it does not come, fail with `what`, which may be a text made then."""
    end, pause_s = time.monotonic() + limit_s, _FIRST_LOOK_S
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:.0f} s: {what if isinstance(what, str) else what()}"
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, _LAST_LOOK_S)
