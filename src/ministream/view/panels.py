"""One picture on the page: image, axes with units, read-out, scale bar, and a slider for its position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    HoverTool,
    LinearColorMapper,
    Range1d,
    ScaleBar,
    Slider,
)
from bokeh.plotting import figure

from ministream.view.feed import Pixels
from ministream.view.theme import Theme
from ministream.view.units import Units
from ministream.wire.live import Kind, Method, Picture, ScanFacts, Shape

# Pixels are square: the range that has room to spare is extended. `tags` are width and height of the picture.
_FIT = """
const [width, height] = figure.tags;
if (!width || !(figure.inner_width > 0 && figure.inner_height > 0)) return;
const scale = square ? Math.max(width / figure.inner_width, height / figure.inner_height) : 0;
const across = (square ? scale * figure.inner_width : width) / 2;
const down = (square ? scale * figure.inner_height : height) / 2;
const place = (range, start, end) => range.setv({start, end, reset_start: start, reset_end: end});
place(figure.x_range, width / 2 - across, width / 2 + across);
place(figure.y_range, height / 2 + down, height / 2 - down);
"""

_AXES: dict[Kind, tuple[str, str]] = {
    "z": ("x", "y"),
    "y": ("x", "z"),
    "x": ("y", "z"),
    "tilted": ("along the azimuth", "down the plane"),
    "projection": ("detector column", "detector row"),
    "sinogram": ("detector column", "projection, by angle"),
}

_ANGLES = (("azimuth", "Azimuth / °", 180, 0), ("tilt", "Tilt / ° (0: vertical, 90: a slice)", 90, 45))


class Panel:
    """A picture of one kind. `moved` is called when its slider moves; `follow`, if given, is the slider it follows."""

    SHAPES: ClassVar[dict[Kind, str]] = {"z": "Slice", "y": "Row", "x": "Column", "tilted": "Offset"}

    def __init__(self, kind: Kind, mapper: LinearColorMapper, theme: Theme, moved: Callable[[], None]) -> None:
        self.kind, self._mapper = kind, mapper
        self._units, self._shape = Units(), (0, 0)
        self.source = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self.slider: Slider | None = None
        if kind in self.SHAPES:
            self.slider = Slider(
                start=0, end=1, value=0, step=1, title=self.SHAPES[kind], name=f"{kind}-slider",
                sizing_mode="stretch_width", disabled=True,
            )  # fmt: skip
            self.slider.on_change("value", lambda _attribute, _old, _new: moved())
        self.angles = [_angle(*limits, moved) for limits in _ANGLES] if kind == "tilted" else []
        self.figure = self._figure(theme)

    def picture(self, by: Method = "image") -> Picture:
        """The picture to show; `by` for planes."""
        if self.slider is None:
            return Picture(self.kind)
        return Picture(self.kind, int(self.slider.value), by, *(float(angle.value) for angle in self.angles))

    def settle(self, scan: ScanFacts) -> None:
        """Adapt to the size and the units of a scan; the slider starts in the middle."""
        self._units = Units.of(scan)
        across, down = _AXES[self.kind]
        in_mm = self.kind != "sinogram"
        unit = f" / {self._units.length}" if in_mm else ""
        self.figure.xaxis.axis_label = across + (f" / {self._units.length}" if in_mm else "")
        self.figure.yaxis.axis_label = down + unit
        for bar in self.figure.select(ScaleBar):
            bar.visible = self._units.length == "mm"
        if self.slider is not None and self.kind == "tilted":
            reach = (scan.rows + scan.n) // 2
            self.slider.update(start=-reach, end=reach, value=0, disabled=False)
        elif self.slider is not None:
            count = scan.rows if self.kind == "z" else scan.n
            self.slider.update(end=max(1, count - 1), value=(count - 1) // 2, disabled=count < 2)

    def show(self, shape: Shape, pixels: Pixels) -> None:
        """Show pixels; the zoom stays unless the size has changed."""
        rows, cols = pixels.shape
        pixel = self._units.pixel * shape.step if self.kind != "sinogram" else shape.step
        width, height = cols * pixel, rows * pixel
        scale = np.float32(self._units.scale) if self.kind in self.SHAPES else np.float32(1)
        self.source.data = {
            "image": [np.ascontiguousarray(pixels * scale)],
            "x": [0.0],
            "y": [0.0],
            "dw": [width],
            "dh": [height],
        }
        if (rows, cols) != self._shape:
            self._shape = rows, cols
            self.figure.axis.visible = True
            self.figure.tags = [width, height]
            self.figure.aspect_ratio = max(0.8, min(2.8, width / height))
        self.figure.title.text = self._title(shape)

    def _title(self, shape: Shape) -> str:
        every = f", every {shape.step}. pixel" if shape.step > 1 else ""
        match self.kind:
            case "projection":
                angle = f" at {shape.angle_deg:.1f}°" if shape.angle_deg is not None else ""
                return f"Newest projection{angle}{every}"
            case "sinogram":
                return f"Sinogram of row {shape.picture.index}, projections in the window{every}"
        name, picture = self.SHAPES[self.kind], shape.picture
        by = " by filtered back projection," if picture.by == "fbp" else ""
        if self.kind == "tilted":
            name = f"Plane at azimuth {picture.azimuth_deg:g}°, tilt {picture.tilt_deg:g}°, offset"
        return f"{name} {picture.index}{by} after update {shape.update}{every}"

    def _figure(self, theme: Theme) -> Any:
        unit = "@image{0.000}"
        fig = figure(
            title=self.SHAPES.get(self.kind, self.kind.capitalize()),
            x_range=Range1d(0, 1),
            y_range=Range1d(1, 0),
            tools="pan,wheel_zoom,box_zoom,reset,save",
            active_scroll="wheel_zoom",
            toolbar_location="above",
            sizing_mode="stretch_width",
            aspect_ratio=1.0,
            name=self.kind,
            min_border_left=66,  # a frame whose size depended on its labels could change for ever
            min_border_right=12,
            min_border_top=30,
            min_border_bottom=52,
        )
        fig.toolbar.logo = None
        fig.toolbar.autohide = True
        fig.image("image", "x", "y", "dw", "dh", source=self.source, color_mapper=self._mapper)
        fig.add_tools(
            HoverTool(tooltips=[("position", "$x{0.00}, $y{0.00}"), ("value", unit)], point_policy="follow_mouse")
        )
        fig.xgrid.visible = fig.ygrid.visible = fig.axis.visible = False
        if self.kind in self.SHAPES:
            fig.add_layout(ScaleBar(range=fig.x_range, unit="mm", location="bottom_left", visible=False))
        fit = CustomJS(args={"figure": fig, "square": self.kind != "sinogram"}, code=_FIT)
        for attribute in ("tags", "inner_width", "inner_height"):
            fig.js_on_change(attribute, fit)
        theme.add(fig)
        return fig


def _angle(name: str, title: str, limit: int, start: int, moved: Callable[[], None]) -> Slider:
    slider = Slider(
        start=-limit, end=limit, value=start, step=1, title=title, name=f"{name}-slider", sizing_mode="stretch_width"
    )  # fmt: skip
    slider.on_change("value", lambda _attribute, _old, _new: moved())
    return slider


def colour_bar(mapper: LinearColorMapper, theme: Theme) -> tuple[Any, ColorBar]:
    """A bar of its own for all slices, and the model that has its title."""
    fig = figure(height=62, sizing_mode="stretch_width", toolbar_location=None, min_border=0, outline_line_color=None)
    bar = ColorBar(
        color_mapper=mapper, orientation="horizontal", height=14, padding=4, title="attenuation",
        formatter=CustomJSTickFormatter(code="return Number(tick.toPrecision(3)).toString()"),
    )  # fmt: skip
    fig.add_layout(bar, "below")
    fig.xaxis.visible = fig.yaxis.visible = fig.xgrid.visible = fig.ygrid.visible = False
    theme.add(fig, outline=False)
    return fig, bar
