"""Shows a volume file: its planes, and what its attributes tell about the scan."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ministream.model import Notice
from ministream.storage import Volume
from ministream.view.feed import Pixels, Shown
from ministream.wire.live import MAX_PICTURES, MAX_SIDE, JobState, Phase, Picture, ScanFacts, Shape


class VolumeFeed:
    """The file at `path`, also of another program. A context manager. Raises InputError."""

    def __init__(self, path: Path) -> None:
        self._volume = Volume(path)
        state = _state(self._volume)
        self._shown = Shown(condition=state.phase, text=state.text, source=str(path), state=state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._volume.close()

    def want(self, pictures: Iterable[Picture]) -> None:
        """Read the planes that are not here yet."""
        held, found = self._shown.pictures, dict[Picture, tuple[Shape, Pixels]]()
        for picture in list(dict.fromkeys(pictures))[:MAX_PICTURES]:
            if picture.kind in ("z", "y", "x") and picture.index < self._volume.shape["zyx".index(picture.kind)]:
                found[picture] = held.get(picture) or self._read(picture)
        before = self._shown
        self._shown = Shown(
            serial=before.serial + 1,
            condition=before.condition,
            text=before.text,
            source=before.source,
            state=before.state,
            pictures=found,
        )

    def shown(self) -> Shown:
        """The newest."""
        return self._shown

    def _read(self, picture: Picture) -> tuple[Shape, Pixels]:
        plane = self._volume.plane("zyx".index(picture.kind), picture.index)
        step = math.ceil(max(plane.shape) / MAX_SIDE)
        pixels = plane[::step, ::step] * np.float32(self._volume.per_pixel)
        assert self._shown.state is not None
        update = self._shown.state.update
        return Shape(picture=picture, update=update, rows=pixels.shape[0], cols=pixels.shape[1], step=step), pixels


def _state(volume: Volume) -> JobState:
    """What the file tells; a file of another program tells little."""
    known: Mapping[str, Any] = volume.attributes
    config = json.loads(known.get("config", "{}"))
    missing = json.loads(known.get("missing", "[]"))
    complete = bool(known.get("complete", True))
    prefix = "projections_"
    ledger = {name.removeprefix(prefix): int(value) for name, value in known.items() if name.startswith(prefix)}
    phase: Phase = "finished" if complete else "incomplete"
    pixel = known.get("pixel_size_um")
    return JobState(
        job=str(volume.path),
        number=1,
        phase=phase,
        text=str(volume.path.name) if complete else "; ".join(missing),
        scan=ScanFacts(
            scan_id=str(known.get("scan_id", volume.path.name)),
            sample=str(known.get("sample", "")),
            rows=volume.shape[0],
            cols=int(known.get("detector_cols", volume.shape[2])),
            n=volume.shape[2],
            projections=ledger.get("delivered", 0),
            pixel_size_um=None if pixel is None else float(pixel),
            algorithm=str(config.get("recon", {}).get("kind", "volume")),
            ranks=int(known.get("ranks", 1)),
            threads=int(config.get("recon", {}).get("threads", 1) or 1),
        ),
        elapsed_s=float(known.get("elapsed_s", 0.0)),
        ledger=ledger,
        losses={
            f"{kind} {reason}": count
            for kind, found in json.loads(known.get("refused_reasons", "{}")).items()
            for reason, count in found.items()
        },
        per_s=0.0,
        lag=0,
        behind_s=None,
        latency_s={},
        update=int(known.get("updates", 0)),
        notices=tuple(
            Notice(**{**each, "frames": tuple(each.get("frames", ()))})
            for each in json.loads(known.get("warnings", "[]"))
        ),
    )
