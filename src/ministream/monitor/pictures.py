"""Pictures of the volume and of its evolution, made from the result files only."""

from __future__ import annotations

import dataclasses
import itertools
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
    load,
    new_figure,
    quiet_axes,
    save,
)

__all__ = ["Array", "against_truth", "load", "orthogonal", "over_time"]

# A cut across the slices with a smaller aspect ratio is stretched, to remain readable.
MIN_ASPECT = 0.22
# A cut is at most so many times as wide as the slice beside it.
WIDEST_CUT = 1.7
MAX_MOMENTS = 8
NAMES = ("slice", "row", "col")


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
    # inches; every panel is as wide as the slice, the cuts below it
    width, margin, gap = 3.5, 0.75, 0.8
    tops = list(itertools.accumulate((view.aspect * width + gap for view in views), initial=0.0))
    height = tops[-1] + 1.3
    figure = new_figure(3 * (margin + width) + 0.25, height, layout=None)
    _headline(figure, _describe(volume))
    place = partial(_place, figure)
    for column, (word, panels) in enumerate((("image", views), ("truth", ideal), ("difference", errors))):
        left = margin + column * (margin + width)
        for top, view in zip(tops, panels, strict=False):
            titled = dataclasses.replace(view, title=f"{word}, {view.title}")
            axes = place(left, height - 0.75 - top - width * view.aspect, width, width * view.aspect)
            mappable = _draw(axes, titled, difference if word == "difference" else style)
        if word == "truth":
            cax = place(1.5 * margin + 0.5 * width, 0.55, width, 0.14)
            _colour_bar(figure, mappable, style.label, cax=cax, orientation="horizontal")
    cax = place(left + 0.15 * width, 0.55, 0.7 * width, 0.14)
    _colour_bar(
        figure,
        mappable,
        f"image − truth, {volume.attributes.get('units', '1/pixel')}",
        cax=cax,
        orientation="horizontal",
    )
    save(figure, path)


def over_time(moments: Sequence[VolumeView], path: Path) -> None:
    """Draw the middle slice of up to eight of the snapshots `moments`, oldest first, with one grey scale, to a PNG.

    Raises StorageError, and ConfigError without matplotlib.
    """
    chosen = _spread(moments)
    slices, rows, cols = chosen[-1].shape
    index = slices // 2
    views = [_View(title=_moment(volume), plane=volume.plane(0, index)) for volume in chosen]
    style = _style(chosen[-1], views[-1:])
    across = min(len(chosen), 4)
    down = math.ceil(len(chosen) / across)
    # inches
    width, gap, bar = 2.7, 0.1, 0.16
    step = width * rows / cols + 0.4
    right, height = gap + across * (width + gap), down * step + 0.5
    figure = new_figure(right + 0.15 + bar + 0.75, height, layout=None)
    _headline(figure, f"Slice {index} of {slices} while the scan runs")
    place = partial(_place, figure)
    for number, view in enumerate(views):
        line, column = divmod(number, across)
        axes = place(gap + column * (width + gap), height - 0.4 - (line + 1) * step + 0.05, width, step - 0.4)
        mappable = _draw(axes, view, style)
        axes.set(xticks=[], yticks=[])
    _scale_bar(axes, views[-1].plane, style.scale)
    tall = min(height - 1.0, 4.0)
    _colour_bar(figure, mappable, style.label, cax=place(right + 0.15, (height - 0.3 - tall) / 2, bar, tall))
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
