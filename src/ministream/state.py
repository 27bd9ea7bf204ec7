"""The state of the objects of a run: named arrays and plain values.

`state()` returns what a restart needs, without derived values; `restore()` loads it into a new object, with plain
arrays. Arrays distributed over ranks are marked, so that a different number of ranks can restore them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Slabwise:
    """An array distributed by slab: this rank has the detector rows of its slab, along `axis`."""

    array: NDArray[Any]
    axis: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """An array distributed evenly over ranks: this rank has the rows `part` of `total`."""

    array: NDArray[Any]
    part: slice
    total: int


Value: TypeAlias = Slabwise | Shared | NDArray[Any] | bool | int | float | str | None
State: TypeAlias = Mapping[str, Value]


class Stateful(Protocol):
    """An object with state that a restart needs."""

    def state(self) -> State:
        """The state for a restart; arrays are views, valid until the object changes."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`, with plain arrays, into an object of the same configuration."""
        ...


def bare(state: State) -> dict[str, Any]:
    """The state with plain arrays, as `restore` expects it."""
    return {name: value.array if isinstance(value, Slabwise | Shared) else value for name, value in state.items()}
