"""Metadata of a volume file: units, geometry, provenance, configuration, counters.

    /data                    float32 [slice, row, col], linear attenuation in 1/cm, or per pixel (`units`)
    /entry/reconstruction    NXdata whose `data` is a link to /data, with axes z, y, x (NeXus viewers); its `title`
                             names sample and scan, and says what is missing
    /entry/process           NXprocess: program, version, date, and the configuration as NXnote (JSON)
    /entry/sample            NXsample
    /exchange/data           the same link (DXchange readers)

Attributes of `/data` describe the values and the geometry, attributes of `/` the scan and the job.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from ministream.ledger import Ledger, both_sides, shortfalls
from ministream.model import Notice, Scan, to_per_cm

DATASET = "/data"
CONVENTION = (
    "x = col - (n-1)/2, y = (n-1)/2 - row, u = x cos(theta) + y sin(theta) + axis_col; pixel centres at integers"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VolumeState:
    """The state of the scan when a volume is written.

    `angles_rad` are the smallest and the largest angle used so far, None before the first; `elapsed_s`
    counts from the first frame. `ledger` is the receiver's, `announced` the producer's, None until it is received.
    `warnings` are notices about the scan, `accepted` the codes of those that the user has acknowledged, `flaw` the
    reason why the volume is doubtful although nothing is missing. `axis`: attributes that say which rotation axis was
    found, and how. `steering`: what an operator has changed while the job ran.
    """

    ledger: Ledger
    announced: Ledger | None = None
    updates: int
    elapsed_s: float
    angles_rad: tuple[float, float] | None = None
    quality: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warnings: tuple[Notice, ...] = ()
    accepted: tuple[str, ...] = ()
    flaw: str = ""
    axis: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    steering: Sequence[Mapping[str, Any]] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Why the volume does not contain every delivered projection; empty for a complete one."""
        return (*shortfalls(self.announced, self.ledger), *filter(None, [self.flaw]))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VolumeHeader:
    """Metadata common to all volumes of a job."""

    scan: Scan
    n: int
    axis_col: float
    ranks: int
    config: Mapping[str, Any]


def describe(file: h5py.File, header: VolumeHeader, state: VolumeState) -> None:
    """Write every attribute and link into `file`, whose /data exists."""
    file.attrs.update(_job(header) | _progress(state))
    file[DATASET].attrs.update(_values(header.scan) | _geometry(header, state))
    _nexus(file, header, state)
    file["exchange/data"] = h5py.SoftLink(DATASET)


def _job(header: VolumeHeader) -> dict[str, Any]:
    scan = header.scan
    known = {"energy_kev": scan.energy_kev, "sample": scan.sample or None}
    return {
        "program": "ministream",
        "version": importlib.metadata.version("ministream"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "ranks": header.ranks,
        "scan_id": scan.scan_id,
        "config": json.dumps(header.config),
    } | {name: value for name, value in known.items() if value is not None}


def _progress(state: VolumeState) -> dict[str, Any]:
    counts = {name: count for name, count in both_sides(state.announced, state.ledger).items() if count is not None}
    return (
        {
            "complete": not state.missing,
            "missing": json.dumps(state.missing),
            "updates": state.updates,
            "elapsed_s": state.elapsed_s,
        }
        | {f"projections_{name}": count for name, count in counts.items()}
        | {"refused_reasons": json.dumps(state.ledger.refusals)}
        | {"warnings": json.dumps([dataclasses.asdict(notice) for notice in state.warnings])}
        | {"warnings_accepted": json.dumps(state.accepted)}
        | {"steering": json.dumps(list(state.steering))}
        | {f"quality_{name}": value for name, value in state.quality.items()}
    )


def attenuation(pixel_size_um: float | None) -> dict[str, str | float]:
    """Attributes that say the unit of the values; values times `scale_to_per_pixel` are per pixel."""
    if pixel_size_um is None:
        return {"units": "1/pixel"}
    return {
        "units": "1/cm",
        "pixel_size_um": pixel_size_um,
        "scale_to_per_pixel": 1 / to_per_cm(pixel_size_um),
    }


def _values(scan: Scan) -> dict[str, Any]:
    values: dict[str, Any] = {
        "long_name": "linear attenuation coefficient",
        "axes": "z:y:x",
        "dimensions": "slice, row, col",
    }
    if scan.pixel_size_um is not None:
        values["element_size_um"] = [scan.pixel_size_um] * 3  # z, y, x, as ImageJ's HDF5 plug-in reads it
    return attenuation(scan.pixel_size_um) | values


def _geometry(header: VolumeHeader, state: VolumeState) -> dict[str, Any]:
    geometry: dict[str, Any] = {"axis_col": header.axis_col, "detector_cols": header.scan.cols, "geometry": CONVENTION}
    if state.angles_rad is not None:
        smallest, largest = map(math.degrees, state.angles_rad)
        geometry |= {"angle_min_deg": smallest, "angle_max_deg": largest}
    return geometry | dict(state.axis)


def _nexus(file: h5py.File, header: VolumeHeader, state: VolumeState) -> None:
    """What NeXus viewers show at once, and what they list beside it."""
    file.attrs.update({"NX_class": "NXroot", "default": "entry"})
    entry = _group(file, "entry", "NXentry")
    entry.attrs["default"] = "reconstruction"
    title = _title(header, state)
    entry.update({"title": title, "entry_identifier": header.scan.scan_id})
    if header.scan.sample:
        _group(entry, "sample", "NXsample")["name"] = header.scan.sample
    process = _group(entry, "process", "NXprocess")
    process.update({"program": "ministream", "version": file.attrs["version"], "date": file.attrs["created"]})
    _group(process, "configuration", "NXnote").update({"type": "application/json", "data": file.attrs["config"]})
    _plot(_group(entry, "reconstruction", "NXdata"), header, title)


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _title(header: VolumeHeader, state: VolumeState) -> str:
    """One line for the head of a plot."""
    what = ", ".join(filter(None, [header.scan.sample, f"scan {header.scan.scan_id}"]))
    return what if not state.missing else f"{what}, INCOMPLETE: {'; '.join(state.missing)}"


def _plot(group: h5py.Group, header: VolumeHeader, title: str) -> None:
    group.attrs.update({"signal": "data", "axes": ["z", "y", "x"]})
    group.attrs.update({f"{name}_indices": index for index, name in enumerate("zyx")})
    group["title"] = title
    group["data"] = h5py.SoftLink(DATASET)
    pixel, units = (1.0, "pixel") if header.scan.pixel_size_um is None else (header.scan.pixel_size_um, "um")
    middle = (header.n - 1) / 2
    coordinates = {
        "z": np.arange(header.scan.rows),
        "y": middle - np.arange(header.n),
        "x": np.arange(header.n) - middle,
    }
    for name, values in coordinates.items():
        group[name] = values * pixel
        group[name].attrs["units"] = units
