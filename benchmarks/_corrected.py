"""Phantoms with artefacts, corrected and reconstructed in this process."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ministream import config, quality
from ministream.app.recon.assignment import assign
from ministream.app.recon.sinograms import UpdateSinograms
from ministream.model import FrameKind, Slab
from ministream.prep.corrections import Corrector
from ministream.recon import backend, open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.source import open_source, truth

SMALL = {"rows": 2, "cols": 256, "projections": 180, "flats": 8, "darks": 4, "i0": 30000.0}


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices [rows, n, n] and their truth."""

    image: NDArray[np.float32]
    truth: NDArray[np.float32]


def psnr(found: Slices) -> float:
    """Inside the circle, against the truth, in dB."""
    low, high = quality.value_range(found.truth)
    return quality.slab_quality(found.image, found.truth, high - low).mean()["psnr"]


def reconstructed(artefacts: Mapping[str, Any], steps: tuple[str, ...], **tables: Any) -> Slices:
    """The phantom with `artefacts`, options of its source, after the corrections `steps`; filtered back projection."""
    sample = {"kind": "phantom", **SMALL, **artefacts}
    return _reconstructed(json.dumps({"source": sample, "prep": {"steps": steps, **tables}, "recon": {"kind": "fbp"}}))


@functools.cache
def _reconstructed(tables: str) -> Slices:
    settings = config.load(None, json.loads(tables))
    with open_source(settings.source, order="sequential", repeat=1) as source:
        scan = source.describe()
        assignment = assign(0, 1, settings, scan, threads=2)
        corrector = Corrector(
            rows=scan.rows,
            cols=scan.cols,
            options=settings.prep,
            dtype=scan.dtype,
            pixel_size_um=scan.pixel_size_um,
            energy_kev=scan.energy_kev,
        )
        window = Window(length=scan.projections, step=scan.projections, cols=scan.cols, slices=scan.rows)
        for frame in source.frames():
            if frame.kind is FrameKind.PROJECTION:
                corrector.correct(frame.pixels, window.slot(frame.index, frame.angle_rad), frame.position)
            else:
                corrector.add(frame.kind, frame.pixels, frame.position)
    geometry = Geometry(n=assignment.n, cols=scan.cols, axis_col=assignment.axis_col)
    image = backend.default().new_image(geometry, scan.rows)
    sinograms = UpdateSinograms(assignment).of(window, backend.idle)
    open_algorithm(settings.recon, geometry, scan.rows).update(image, sinograms, 1)
    ideal = truth(scan, Slab(0, scan.rows), n=assignment.n, at=0.5)
    assert ideal is not None
    slices = np.moveaxis(backend.default().host(image)[:, :, : scan.rows], 2, 0)
    return Slices(image=np.ascontiguousarray(slices), truth=ideal)
