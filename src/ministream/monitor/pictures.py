"""Pictures of the volume and of its evolution, made from the result files only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ministream.monitor._figure import (
    INK,
    QUIET,
    Plane,
    Scale,
    VolumeView,
    attenuation_label,
    grey_window,
    new_figure,
    quiet_axes,
    save,
)

# A cut across the slices with a smaller aspect ratio is stretched, to remain readable.
MIN_ASPECT = 0.22
# A cut is at most so many times as wide as the slice beside it.
WIDEST_CUT = 1.7
MAX_MOMENTS = 8
NAMES = ("slice", "row", "col")
BELOW = {"location": "bottom", "shrink": 0.6, "aspect": 40, "pad": 0.02}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """A volume in memory, `values` [slice, row, col], with the interface of a volume file."""

    path: Path
    values: Plane
    attributes: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        slices, rows, cols = self.values.shape
        return slices, rows, cols

    def plane(self, axis: int, index: int) -> Plane:
        """The plane at `index` along axis 0 (slice), 1 (row) or 2 (col)."""
        where: list[Any] = [slice(None)] * 3
        where[axis] = index
        plane: Plane = self.values[tuple(where)]
        return plane


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _View:
    """One panel: a plane with its title and the names of its axes."""

    title: str
    plane: Plane
    across: str = ""
    down: str = ""

    @property
    def aspect(self) -> float:
        """Height divided by width, as drawn."""
        rows, cols = self.plane.shape
        return max(int(rows) / int(cols), MIN_ASPECT)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Style:
    """Mapping of values to colours and of pixels to lengths, common to several panels."""

    scale: Scale
    label: str
    limits: tuple[float, float]
    colours: str = "gray"


def orthogonal(volume: VolumeView, path: Path) -> None:
    """Draw three orthogonal planes through the middle of `volume` to a PNG; of one slice, only the slice.

    Raises StorageError, and ConfigError without matplotlib.
    """
    views = _views(volume)
    style = _style(volume, views)
    # inches; the cuts are stacked beside the slice, with the same total height: flat ones are wider than the slice
    side, margin, bar = 4.6, 0.75, 0.16
    width = 0.0 if len(views) == 1 else min(WIDEST_CUT * side, (side - margin) / (2 * views[1].aspect))
    right = margin + side + (margin + width if width else 0.0)
    figure = new_figure(right + 0.25 + bar + 0.9, side + 1.4, layout=None)
    _headline(figure, _describe(volume))
    place = partial(_place, figure)
    mappable = _draw(place(margin, 0.6, side, side), views[0], style)
    for view, bottom in zip(views[1:], (0.6 + side - width * views[-1].aspect, 0.6), strict=False):
        _draw(place(right - width, bottom, width, width * view.aspect), view, style)
    _colour_bar(figure, mappable, style.label, cax=place(right + 0.25, 0.6 + 0.1 * side, bar, 0.8 * side))
    save(figure, path)


def against_truth(volume: VolumeView, truth: VolumeView, path: Path) -> None:
    """Draw the same planes of `volume`, of `truth` and of their difference side by side to a PNG.

    Raises StorageError, and ConfigError without matplotlib.
    """
    views, ideal = _views(volume), _views(truth)
    errors = [dataclasses.replace(v, plane=v.plane - t.plane) for v, t in zip(views, ideal, strict=True)]
    style = _style(volume, ideal)
    bound = max(map(abs, grey_window([view.plane for view in errors])))
    difference = dataclasses.replace(style, limits=(-bound, bound), colours="RdBu_r")
    heights = [view.aspect for view in views]
    figure = new_figure(13.0, 3.9 * sum(heights) + 0.6 * len(heights) + 1.2)
    _headline(figure, _describe(volume))
    grid = figure.subplots(len(views), 3, squeeze=False, height_ratios=heights)
    for column, (word, panels) in enumerate((("image", views), ("truth", ideal), ("difference", errors))):
        for axes, view in zip(grid[:, column], panels, strict=True):
            titled = dataclasses.replace(view, title=f"{word}, {view.title}")
            mappable = _draw(axes, titled, difference if word == "difference" else style)
        if word == "truth":
            _colour_bar(figure, mappable, style.label, ax=grid[:, :2], **BELOW)
    _colour_bar(figure, mappable, f"image − truth, {style.label}", ax=grid[:, 2], **BELOW)
    save(figure, path)


def over_time(moments: Sequence[VolumeView], path: Path, index: int = 0) -> None:
    """Draw slice `index` of up to eight of the snapshots `moments`, oldest first, with one grey scale, to a PNG.

    Raises StorageError, and ConfigError without matplotlib.
    """
    chosen = _spread(moments)
    views = [_View(title=_moment(volume), plane=volume.plane(0, index)) for volume in chosen]
    style = _style(chosen[-1], views[-1:])
    cols = min(len(chosen), 4)
    rows = math.ceil(len(chosen) / cols)
    figure = new_figure(2.9 * cols + 0.9, 3.1 * rows + 0.5)
    _headline(figure, f"Slice {index} of {chosen[-1].shape[0]} while the scan runs")
    grid = figure.subplots(rows, cols, squeeze=False)
    for axes, view in zip(grid.flat, views, strict=False):
        mappable = _draw(axes, view, style)
        axes.set(xticks=[], yticks=[])
    for axes in grid.flat[len(views) :]:
        axes.set_axis_off()
    _scale_bar(grid.flat[len(views) - 1], views[-1].plane, style.scale)
    _colour_bar(figure, mappable, style.label, ax=grid, pad=0.02, shrink=0.85, aspect=25)
    save(figure, path)


def _views(volume: VolumeView) -> list[_View]:
    slices, rows, cols = volume.shape
    middle = (slices // 2, rows // 2, cols // 2)
    across = ((2, 1), (2, 0), (1, 0))
    planes = range(3) if slices > 1 else range(1)
    return [
        _View(
            title=f"{NAMES[axis]} {middle[axis]} of {volume.shape[axis]}",
            plane=volume.plane(axis, middle[axis]),
            across=NAMES[across[axis][0]],
            down=NAMES[across[axis][1]],
        )
        for axis in planes
    ]


def _style(volume: VolumeView, views: list[_View]) -> _Style:
    limits = grey_window([view.plane for view in views])
    return _Style(scale=Scale.of(volume), label=attenuation_label(volume), limits=limits)


def _headline(figure: Any, text: str) -> None:
    figure.suptitle(text, fontsize=11, color=INK, x=0.01, ha="left")


def _draw(axes: Any, view: _View, style: _Style) -> Any:
    rows, cols = view.plane.shape
    stretch = view.aspect * cols / rows
    image = axes.imshow(
        view.plane,
        cmap=style.colours,
        vmin=style.limits[0],
        vmax=style.limits[1],
        extent=style.scale.extent(cols, rows),
        aspect=stretch,
        interpolation="nearest" if max(rows, cols) < 512 else "antialiased",
    )
    stretched = f"  (height × {stretch:.0f})" if view.aspect == MIN_ASPECT else ""
    axes.set_title(view.title + stretched, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(f"{view.across} ({style.scale.unit})" if view.across else "")
    axes.set_ylabel(f"{view.down} ({style.scale.unit})" if view.down else "")
    axes.locator_params(axis="y", nbins=min(6, rows + 1), integer=style.scale.unit == "pixel")
    quiet_axes(axes)
    return image


def _place(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a position in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _colour_bar(figure: Any, mappable: Any, label: str, **place: Any) -> None:
    bar = figure.colorbar(mappable, extend="both", **place)
    bar.set_label(label, fontsize=8, color=QUIET)
    bar.ax.tick_params(labelsize=8, colors=QUIET, width=0.6)
    bar.outline.set(linewidth=0.6, edgecolor="#b0b0b0")


def _scale_bar(axes: Any, plane: Plane, scale: Scale) -> None:
    width = plane.shape[1] * scale.pixel
    wish = width / 4
    power = 10.0 ** math.floor(math.log10(wish))
    length = max(step * power for step in (1, 2, 5) if step * power <= wish)
    left, bottom = 0.05 * width, 0.93 * plane.shape[0] * scale.pixel
    axes.plot([left, left + length], [bottom, bottom], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.annotate(
        f"{length:g} {scale.unit}",
        (left + length / 2, bottom),
        xytext=(0, 4),
        textcoords="offset points",
        color="white",
        fontsize=8,
        ha="center",
        bbox={"facecolor": "black", "alpha": 0.45, "linewidth": 0, "pad": 1.5},
    )


def _spread(moments: Sequence[VolumeView]) -> list[VolumeView]:
    count = min(len(moments), MAX_MOMENTS)
    return [moments[round(i)] for i in np.linspace(0, len(moments) - 1, count)]


def _moment(volume: VolumeView) -> str:
    used, elapsed = volume.attributes.get("projections_used"), volume.attributes.get("elapsed_s")
    if used is None:
        return volume.path.name
    return f"{used} projections" + (f", {elapsed:.1f} s" if elapsed is not None else "")


def _describe(volume: VolumeView) -> str:
    known = volume.attributes
    shape = " × ".join(map(str, volume.shape))
    parts = [str(known.get("scan_id", volume.path.name)), str(known.get("sample", "")), f"{shape} [slice, row, col]"]
    if "projections_used" in known:
        parts.append(f"{known['projections_used']} projections")
    if known.get("complete") is not None and not known["complete"]:
        parts.append("INCOMPLETE")
    return "  ·  ".join(filter(None, parts))
