"""Units of what the page shows: lengths in millimetres and attenuation in 1/cm where the pixel size is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ministream.model import to_per_cm
from ministream.wire.live import ScanFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """`pixel` is a pixel's side in `length`; image values times `scale` are in `attenuation`."""

    length: str = "pixel"
    pixel: float = 1.0
    attenuation: str = "1/pixel"
    scale: float = 1.0

    @classmethod
    def of(cls, scan: ScanFacts) -> Self:
        """The units of a scan."""
        if scan.pixel_size_um is None:
            return cls()
        return cls(length="mm", pixel=scan.pixel_size_um / 1e3, attenuation="1/cm", scale=to_per_cm(scan.pixel_size_um))
