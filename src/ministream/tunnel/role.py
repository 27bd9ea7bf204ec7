"""Which side of the tunnel a session serves."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """SciStream's names: PROD accepts connections beside the producer, CONS connects from beside the consumer."""

    PROD = "PROD"
    CONS = "CONS"
