"""One plane as a PNG, 8 bits, with a caption; everything else that is known in its text chunks."""

from __future__ import annotations

from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from ministream.storage.exports import Export
from ministream.storage.exports._grey import picture
from ministream.storage.exports._labels import plane_label, values_label

FOLDER = False


def write(export: Export, part: Path) -> None:
    """Write the plane. Raises OSError."""
    text = PngInfo()
    text.add_itxt("Title", export.provenance.title)
    text.add_itxt("Description", export.provenance.json())
    caption = f"{export.provenance.title}\n{plane_label(export)}; {values_label(export)}"
    sheet = picture(export.volume.plane(export.axis, export.index), export.limits, caption)
    sheet.save(part, format="PNG", pnginfo=text)
