"""Options that notices recommend, ready to be pasted."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

MOST_RUNS = 20
"""An option with more runs of projections than this is not written out."""


def exclude(recorded: NDArray[np.float64]) -> str:
    """The option that excludes these projections; `recorded` are their numbers in the recording, 0 where unknown."""
    numbers = np.unique(recorded.astype(np.int64))
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers.tolist()), key=lambda k: k[1] - k[0])]
    if numbers.size < recorded.size or len(runs) > MOST_RUNS:
        return "source.exclude"
    listed = (f"[{run[0]},{run[-1] + 1}]" if len(run) > 1 else str(run[0]) for run in runs)
    return f"--set source.exclude=[{','.join(listed)}]"
