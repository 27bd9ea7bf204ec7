"""Places for callers that are not yet authenticated; used by the control port and the relay's data ports.

Pure bookkeeping: no sockets, no clocks, importable by the relay process without anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Strangers:
    """A fixed number of places. A new caller always gets one: when all are taken, the oldest caller of the address that
    holds most is dropped, so that idle callers cannot block one that authenticates promptly.
    """

    def __init__(self, places: int, per_address: int) -> None:
        self._places = places
        self._per_address = per_address
        self._waiting: dict[object, tuple[str, Callable[[], object]]] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, key: object, address: str, drop: Callable[[], object]) -> None:
        """Give `key` a place; `drop` ends it if another needs the place."""
        held = Counter(host for host, _ in self._waiting.values())
        if held[address] >= self._per_address:
            self._drop_oldest(address)
        elif len(self._waiting) >= self._places:
            self._drop_oldest(held.most_common(1)[0][0])
        self._waiting[key] = (address, drop)

    def leave(self, key: object) -> None:
        """Release the place: the caller is authenticated, or has disconnected."""
        self._waiting.pop(key, None)

    def _drop_oldest(self, address: str) -> None:
        key = next(key for key, (host, _) in self._waiting.items() if host == address)
        _, drop = self._waiting.pop(key)
        self.dropped += 1
        drop()
