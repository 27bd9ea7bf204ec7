"""What pictures say about their plane."""

from __future__ import annotations

from ministream.storage.exports import Export

_NAMES = ("slice", "row", "column")


def plane_label(export: Export) -> str:
    """Which plane it is."""
    return f"{_NAMES[export.axis]} {export.index} of {export.volume.shape[export.axis]}"


def values_label(export: Export) -> str:
    """Which values are black and white."""
    low, high = export.limits
    units = export.volume.attributes.get("units", "")
    return f"black {low:.4g}, white {high:.4g} {units}".rstrip()
