"""One plane of every snapshot, and of the volume, as an H.264 film with a caption."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ministream.errors import InputError
from ministream.storage.exports import Export
from ministream.storage.exports._grey import picture
from ministream.storage.exports._labels import plane_label, values_label
from ministream.storage.reader import Volume

FOLDER = False


def write(export: Export, part: Path) -> None:
    """Write one frame per moment. Raises InputError for a volume without snapshots, OSError."""
    if len(export.moments) < 2:
        raise InputError(
            f"{export.volume.path}: no snapshots beside it, a film needs some. "
            "Reconstruct with --set window.write_freq=1, or choose a name that ends with .png"
        )
    try:
        _encode(export, part)
    except av.FFmpegError as error:
        raise OSError(f"H.264: {error}") from error


def _encode(export: Export, part: Path) -> None:
    width, height = _sheet(export, export.moments[0]).size
    with av.open(str(part), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as film:
        film.metadata.update({"title": export.provenance.title, "comment": export.provenance.json()})
        stream = film.add_stream("libx264", rate=Fraction(export.fps).limit_denominator(1000), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for moment in export.moments:
            sheet = _sheet(export, moment).crop((0, 0, width, height))
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(sheet), format="gray")))
        film.mux(stream.encode())


def _sheet(export: Export, moment: Volume) -> Image.Image:
    used, elapsed = moment.attributes.get("projections_used"), moment.attributes.get("elapsed_s")
    when = [] if elapsed is None else [f"{elapsed:.1f} s"]
    when += [] if used is None else [f"{used} projections"]
    caption = f"{export.provenance.title}\n{values_label(export)}\n{'; '.join([plane_label(export), *when])}"
    return picture(moment.plane(export.axis, export.index), export.limits, caption)
