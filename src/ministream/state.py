"""The state of a run, as whoever holds it offers it: named arrays and plain values.

`state()` gives what a restart needs and nothing that follows from it; `restore()` takes the same back into a fresh
object, with bare arrays. What the ranks hold together is marked, so that another number of ranks can take it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Slabwise:
    """An array of which this rank has the detector rows of its slab, along `axis`."""

    array: NDArray[Any]
    axis: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """An array of which this rank has the rows `part` of `total`, which the ranks deal evenly among them."""

    array: NDArray[Any]
    part: slice
    total: int


Value: TypeAlias = Slabwise | Shared | NDArray[Any] | bool | int | float | str | None
State: TypeAlias = Mapping[str, Value]


class Stateful(Protocol):
    """Whoever holds state of a run."""

    def state(self) -> State:
        """What a restart needs; arrays are views, valid until the object changes."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, with bare arrays, into an object of the same configuration."""
        ...


def bare(state: State) -> dict[str, Any]:
    """The same with bare arrays, as `restore` takes it."""
    return {name: value.array if isinstance(value, Slabwise | Shared) else value for name, value in state.items()}
