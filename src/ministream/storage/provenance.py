"""Where a volume comes from, as plain values that every format can carry."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ministream.storage.reader import Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Scan, reconstruction and completeness of a volume.

    `complete` is None for a file of another program, which does not say. `details` are all attributes of the volume as
    JSON values, and `converted_by`, this program with its version.
    """

    scan_id: str
    sample: str
    algorithm: str
    complete: bool | None
    missing: tuple[str, ...]
    details: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, volume: Volume) -> Self:
        """From the attributes of a volume."""
        details = {name: _plain(value) for name, value in volume.attributes.items()}
        details["config"] = config = json.loads(details.get("config", "{}"))
        for name in ("missing", "warnings", "warnings_accepted", "refused_reasons"):
            if name in details:
                details[name] = json.loads(details[name])
        algorithm = str(config.get("recon", {}).get("kind", ""))
        known = {"algorithm": algorithm, "source_file": volume.path.name, "converted_by": _program()}
        return cls(
            scan_id=str(details.get("scan_id", volume.path.stem)),
            sample=str(details.get("sample", "")),
            algorithm=algorithm,
            complete=details.get("complete"),
            missing=tuple(details.get("missing", ())),
            details=known | details,
        )

    @property
    def title(self) -> str:
        """One line: sample, scan and algorithm, and what is missing."""
        return ", ".join(filter(None, [self.sample, f"scan {self.scan_id}", self.algorithm, self.flaw]))

    @property
    def flaw(self) -> str:
        """Why the volume is not complete; empty for a complete one."""
        if self.complete is not False:
            return ""
        return f"INCOMPLETE: {'; '.join(self.missing) or 'the file does not say why'}"

    def json(self) -> str:
        """All details as JSON."""
        return json.dumps(self.details)


def _program() -> str:
    return f"ministream {importlib.metadata.version('ministream')}"


def _plain(value: Any) -> Any:
    """The value of an HDF5 attribute as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | bool | int | float) or value is None else str(value)
