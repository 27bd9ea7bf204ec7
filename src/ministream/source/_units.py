"""Units of lengths and energies, as files spell them in lower case."""

from __future__ import annotations

TO_UM = dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 1.0)
TO_UM |= {"nm": 1e-3, "mm": 1e3, "m": 1e6}
TO_KEV = {"kev": 1.0, "ev": 1e-3}
