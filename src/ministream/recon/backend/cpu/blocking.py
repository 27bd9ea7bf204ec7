"""Blocking of the projection kernels for registers, first-level and second-level cache.

    processor        registers   floats each   widest   sums at the widest
    AVX-512                 32            16      128                    2
    AVX, AVX2               16             8       64                    1
    NEON                    32             4       64                    1
    SSE2                    16             4       32                    1

Half of the registers hold sums: with eight or more independent ones the latency of a multiply-add (four cycles, two per
cycle) is hidden; the other half is for weights. More lanes per weight mean fewer weight loads, so sums are added only
where lanes leave registers free. More than 128 lanes would fill the caches with a few pixels.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from typing import Self

from ministream import jit

LINES = 16
"""Lines of the image that a ray is followed through at once, and lanes of the vectors in which weights are computed."""
_WIDEST = 128
_GROUP = 32 * 64
"""Most projections times slices of one forward task: their sums and a piece of the image fit the second-level cache."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """Numbers that a kernel is compiled for.

    `lanes` slices share a weight; LLVM sees them as `parts` vectors. `sums` independent sums of so many lanes are kept
    in registers. Work is cut into squares of `side` pixels, up to `group` projections at once, and inside a square into
    strips of `strip` positions.
    """

    lanes: int
    parts: int
    sums: int
    side: int
    group: int
    strip: int

    @property
    def span(self) -> int:
        """Detector columns that a square can see, and one beyond."""
        return math.ceil(self.side * math.sqrt(2)) + 3


@dataclass(frozen=True, slots=True)
class Processor:
    """What blocking depends on: vector registers, float32 in each, bytes of a core's caches."""

    registers: int
    floats: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10

    @classmethod
    def here(cls) -> Self:
        """The processor that numba compiles for, with the caches of this one."""
        features = jit.processor()[1].split(",")
        l1, l2 = _cache_bytes(1, 32 << 10), _cache_bytes(2, 512 << 10)
        if platform.machine() not in {"x86_64", "AMD64"}:
            return cls(32, 4, l1, l2)
        if "+avx512f" in features:
            return cls(32, 16, l1, l2)
        return cls(16, 8 if "+avx" in features else 4, l1, l2)

    @property
    def widest(self) -> int:
        """Most lanes that share a weight."""
        return min(_WIDEST, self.registers // 2 * self.floats)

    def forward(self, lanes: int) -> Blocking:
        """Blocking of the forward projection of `lanes` slices."""
        group = _GROUP // max(lanes, 64)
        # a square of the image and the sums of its rays take about half of the second-level cache
        side = 32 if 4 * lanes * (32 * 32 + 34 * group) <= 0.55 * min(self.l2_bytes, 1 << 20) else 16
        # what a strip's rays read stays in the first-level cache from one projection to the next
        strip = side if self._whole else max(8, min(side, self.l1_bytes // (LINES * 4 * lanes)))
        return Blocking(lanes, self._parts(lanes), min(4, self._sums(lanes)), side, group, strip)

    def back(self, lanes: int) -> Blocking:
        """Blocking of the back projection of `lanes` slices."""
        strip = 16 if lanes > 16 else 32
        # what a strip's row reads of a group, about 3/4 of its width, stays in the first-level cache for the next row
        fits = 16 * 0.75 * strip * 4 * lanes <= (2 if self._whole else 1) * self.l1_bytes
        return Blocking(lanes, self._parts(lanes), min(2, self._sums(lanes)), 32, 16 if fits else 8, strip)

    @property
    def _whole(self) -> bool:
        """A register holds a cache line: LLVM orders split vectors well, and strips are as wide as squares."""
        return self.floats == LINES

    def _sums(self, lanes: int) -> int:
        return max(1, self.registers // 2 * self.floats // max(lanes, self.floats))

    def _parts(self, lanes: int) -> int:
        # LLVM splits wide vectors into halves, in an order that makes sums depend on each other
        return 1 if self._whole else max(1, lanes // self.floats)


def _cache_bytes(level: int, otherwise: int) -> int:
    """Bytes of one core's data cache, `otherwise` if the system does not report it."""
    name = "SC_LEVEL1_DCACHE_SIZE" if level == 1 else f"SC_LEVEL{level}_CACHE_SIZE"
    return (os.sysconf(name) if name in os.sysconf_names else 0) or otherwise


PROCESSOR = Processor.here()
