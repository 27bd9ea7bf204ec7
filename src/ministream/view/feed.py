"""What the page shows, and the interface of those that provide it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ministream.wire.live import JobState, Phase, Picture, Shape, UpdateRecord

Pixels: TypeAlias = NDArray[np.float32]
Condition: TypeAlias = Phase | Literal["lost"]
"""The phase of the job; `lost`: the page has no connection to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Everything that the page shows; `serial` changes whenever anything does.

    `state` is the last one received, None before the first. `updates` are all of its job.
    """

    serial: int = 0
    condition: Condition = "waiting"
    text: str = ""
    source: str = ""
    state: JobState | None = None
    updates: tuple[UpdateRecord, ...] = ()
    pictures: Mapping[Picture, tuple[Shape, Pixels]] = field(default_factory=dict)


class Feed(Protocol):
    """Provides what the page shows; called from the page's thread, never blocks for long."""

    def want(self, pictures: Iterable[Picture]) -> None:
        """Provide these pictures from now on, the first MAX_PICTURES of them."""
        ...

    def shown(self) -> Shown:
        """The newest."""
        ...
