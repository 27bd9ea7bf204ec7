"""Which side of the tunnel a session serves."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """SciStream's names: PROD accepts beside the producer, CONS dials from beside the consumer."""

    PROD = "PROD"
    CONS = "CONS"
