"""Common figure style: drawn without a display and without global state, saved atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import ConfigError

Plane = NDArray[np.float32]

INK = "#222222"
QUIET = "#6b6b6b"
LINES = ("#1f5a93", "#c4572b", "#3f8f5b")


class VolumeView(Protocol):
    """A reconstructed volume that provides single planes, such as an open file."""

    @property
    def path(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...

    def plane(self, axis: int, index: int) -> Plane:
        """The plane at `index` along axis 0 (slice), 1 (row) or 2 (col)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Length unit of the axes: millimetres or micrometres if the pixel size is known, else pixels."""

    pixel: float = 1.0
    unit: str = "pixel"

    @classmethod
    def of(cls, volume: VolumeView) -> Scale:
        """From the attributes of a volume; the unit suits the width of its slices."""
        size_um = volume.attributes.get("pixel_size_um")
        if size_um is None:
            return cls()
        if float(size_um) * volume.shape[2] < 2000:
            return cls(pixel=float(size_um), unit="µm")
        return cls(pixel=float(size_um) / 1000, unit="mm")

    def extent(self, cols: int, rows: int) -> tuple[float, float, float, float]:
        """Extent for imshow: the outer edges of the first and last pixels, row 0 at the top."""
        return -0.5 * self.pixel, (cols - 0.5) * self.pixel, (rows - 0.5) * self.pixel, -0.5 * self.pixel


def attenuation_label(volume: VolumeView) -> str:
    """Label of a colour bar, with the unit of the volume's values."""
    return f"linear attenuation ({volume.attributes.get('units', '1/pixel')})"


def grey_window(planes: Iterable[Plane]) -> tuple[float, float]:
    """Grey levels of black and white, robust against outliers: the 0.5th and 99.5th percentile."""
    values = np.concatenate([plane[np.isfinite(plane)].ravel() for plane in planes])
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def new_figure(width: float, height: float, layout: Literal["compressed", "constrained"] | None = "compressed") -> Any:
    """A figure in inches; the layout engine avoids overlaps; with None the caller places all axes.

    Raises ConfigError when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(
            "pictures need matplotlib: pip install 'ministream[pictures]', or output.pictures = false"
        ) from error
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def load() -> None:
    """Import what drawing needs, in a thread of its own: later the first picture does not wait for it."""
    threading.Thread(target=_load, name="load matplotlib", daemon=True).start()


def _load() -> None:
    with contextlib.suppress(ModuleNotFoundError):  # told when a picture is drawn
        importlib.import_module("matplotlib.backends.backend_agg")
        importlib.import_module("matplotlib.figure")


def quiet_axes(axes: Any) -> None:
    """Apply a thin frame and small grey ticks."""
    axes.tick_params(colors=QUIET, labelsize=8, width=0.6, length=3)
    for spine in axes.spines.values():
        spine.set(color="#b0b0b0", linewidth=0.6)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=QUIET, fontsize=8)


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a PNG. Raises StorageError naming the file."""
    with atomic.replacing(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
