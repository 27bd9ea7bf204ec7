"""The page of one browser: panels, charts and texts, brought up to date from the feed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import Button, CustomJS, Div, LinearColorMapper, RangeSlider, Select, Toggle, Widget

from ministream.view import texts
from ministream.view.charts import Curve, StageBars
from ministream.view.feed import Feed, Pixels, Shown
from ministream.view.panels import Panel, colour_bar
from ministream.view.steering import Steer, SteeringControls
from ministream.view.theme import Theme
from ministream.view.units import Units
from ministream.wire.live import Kind, Method, Picture, UpdateRecord

REFRESH_MS = 400
AGAIN_S = 2.0
"""A beat that is not returned for this time, because the browser was not connected yet, is repeated."""
_PLANES: tuple[Kind, ...] = ("z", "y", "x", "tilted")
_KINDS: tuple[Kind, ...] = (*_PLANES, "projection", "sinogram")
_BY: dict[str, Method] = {"the algorithm": "image", "filtered back projection": "fbp"}
_PALETTES = {"grey": "Greys256", "viridis": "Viridis256", "inferno": "Inferno256"}
_AUTO, _FULL, _FIXED = "auto: 0.5 to 99.5 %", "minimum to maximum", "fixed"


class Wanted:
    """The pictures that the pages of one process show together."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._by_page: dict[int, tuple[Picture, ...]] = {}

    def change(self, page: int, pictures: tuple[Picture, ...]) -> None:
        """Set what a page shows; nothing for one that is closed. The page that changed last comes first."""
        self._by_page.pop(page, None)
        if pictures:
            self._by_page[page] = pictures
        self._feed.want(picture for found in reversed(self._by_page.values()) for picture in found)


class Page:
    """Builds the document of one browser."""

    def __init__(self, document: Document, feed: Feed, wanted: Wanted, steer: Steer | None = None) -> None:
        self._feed, self._wanted, self._theme = feed, wanted, Theme()
        self._serial, self._job = -1, ""
        self._drawn: dict[Kind, Pixels] = {}
        self._levels: dict[Kind, Any] = {}
        self._slices = LinearColorMapper(palette=_PALETTES["grey"], low=0, high=1, nan_color="#00000000")
        plain = [LinearColorMapper(palette="Greys256", low=0, high=1) for _ in range(2)]
        mappers = dict(zip(_KINDS, [self._slices] * len(_PLANES) + plain, strict=True))
        self._panels = {kind: Panel(kind, mappers[kind], self._theme, self._moved) for kind in _KINDS}
        self._mappers = mappers
        self._residual = Curve("residual", "Residual |b − A x|", "residual", ["residual"], self._theme)
        self._quality = Curve("quality", "Quality against the reference", "PSNR / dB", ["psnr"], self._theme)
        self._rate = Curve("rate", "Throughput", "projections/s", ["rate"], self._theme)
        self._lag = Curve("lag", "Age of the newest projection in the image", "age / s", ["age"], self._theme)
        self._quality.figure.visible = False
        self._stages = StageBars(self._theme)
        self._texts = {name: Div(name=name, sizing_mode="stretch_width") for name in _TEXTS}
        # The browser returns each beat: the page never has more than one round of changes to draw.
        self._beat = Div(name="beat", visible=False, tags=[0], text="0")
        self._beat_s = time.monotonic()
        self._charted: tuple[str, int, int] = ("", 0, 0)
        self._controls()
        self._steering = SteeringControls(document, steer)
        self._add_to(document, steers=steer is not None)

    def _controls(self) -> None:
        self._bar, self._bar_model = colour_bar(self._slices, self._theme)
        self._mode = Select(title="Contrast", value=_AUTO, options=[_AUTO, _FULL, _FIXED], name="mode")
        self._mode.on_change("value", lambda _name, _old, _new: self._adapt())
        self._window = RangeSlider(
            start=0, end=1, value=(0, 1), step=0.001, title="Grey values", name="window", sizing_mode="stretch_width"
        )
        self._window.on_change("value", self._windowed)
        self._by = Select(title="Planes by", value="the algorithm", options=list(_BY), name="by", disabled=True)
        self._by.on_change("value", lambda _name, _old, _new: self._moved())
        self._slant = Toggle(label="Tilted plane", name="slant", button_type="light", width=120, disabled=True)
        self._slant.on_change("active", lambda _name, _old, new: self._show_tilted(new))
        self._palette = Select(title="Colours", value="grey", options=list(_PALETTES), name="palette")
        self._palette.on_change("value", lambda _name, _old, new: self._slices.update(palette=_PALETTES[new]))
        self._dark = Toggle(label="Light", active=False, name="light", button_type="light", width=80)
        self._dark.on_change("active", lambda _name, _old, new: self._switch(not new))
        self._dark.js_on_change("active", CustomJS(code="document.body.classList.toggle('light', cb_obj.active)"))
        self._reset = Button(label="Reset zoom", name="reset", width=110)
        self._reset.js_on_click(
            CustomJS(args={"figures": [panel.figure for panel in self._panels.values()]},
                     code="for (const f of figures) f.reset.emit()")
        )  # fmt: skip

    def _add_to(self, document: Document, *, steers: bool) -> None:
        beat = CustomJS(code="window.ministreamBeat = Date.now(); cb_obj.text = String(cb_obj.tags[0])")
        self._beat.js_on_change("tags", beat)
        charts: list[Curve | StageBars] = [self._residual, self._quality, self._rate, self._lag, self._stages]
        roots = [
            *self._texts.values(), self._beat, self._bar, self._mode, self._window, self._palette, self._dark,
            self._reset, self._by, self._slant,
            *self._steering.widgets,
            *self._panels["tilted"].angles, *(chart.figure for chart in charts),
            *(panel.figure for panel in self._panels.values()),
            *(panel.slider for panel in self._panels.values() if panel.slider is not None),
        ]  # fmt: skip
        self._bar.name = "colours"
        for root in roots:
            if isinstance(root, Widget):
                root.stylesheets = [_file("texts.css" if isinstance(root, Div) else "widgets.css")]
            document.add_root(root)
        document.title = "Mini-Stream"
        document.template = _file("page.html")
        document.template_variables["steers"] = steers
        document.template_variables["style"] = _file("page.css")
        document.add_periodic_callback(self._refresh, REFRESH_MS)
        document.on_session_destroyed(lambda _context: self._wanted.change(id(self), ()))
        self._update(self._feed.shown())

    def _refresh(self) -> None:
        returned, now = self._beat.text == str(self._beat.tags[0]), time.monotonic()
        if not returned and now - self._beat_s < AGAIN_S:
            return
        shown = self._feed.shown()
        if returned and shown.serial != self._serial:
            self._serial = shown.serial
            self._update(shown)
        self._beat.tags, self._beat_s = [self._beat.tags[0] + 1], now

    def _update(self, shown: Shown) -> None:
        for name, text in _TEXTS.items():
            if (html := text(shown)) != self._texts[name].text:
                self._texts[name].text = html
        if shown.state is None:
            return
        if shown.state.job != self._job:
            self._begin(shown)
        self._draw(shown)

    def _begin(self, shown: Shown) -> None:
        """Adapt to a job that was not seen before."""
        assert shown.state is not None
        first, self._job = not self._job, shown.state.job
        self._drawn.clear()
        units = Units.of(shown.state.scan)
        self._bar_model.title = f"attenuation / ({units.attenuation})"
        at = {kind: panel.slider.value for kind, panel in self._panels.items() if panel.slider is not None}
        for kind, panel in self._panels.items():
            panel.settle(shown.state.scan)
            if not first and panel.slider is not None:  # a job that was restarted: the same place
                panel.slider.value = min(at[kind], panel.slider.end)
        self._by.disabled, self._slant.disabled = not shown.state.scan.fbp, not shown.state.scan.tilted
        if self._by.disabled:
            self._by.value = "the algorithm"
        self._slant.active = self._slant.active and not self._slant.disabled
        self._show_tilted(self._slant.active)

    def _show_tilted(self, active: bool) -> None:
        """Show the tilted plane, or do not ask for it."""
        panel = self._panels["tilted"]
        for model in (panel.figure, panel.slider, *panel.angles):
            model.visible = active
        self._moved()

    def _draw(self, shown: Shown) -> None:
        new = [panel for panel in self._panels.values() if self._show(panel, shown)]
        if new:
            self._adapt()
        assert shown.state is not None
        charted = shown.state.job, len(shown.updates), shown.state.update
        if charted != self._charted:
            self._charted = charted
            self._chart(shown.updates)
            self._stages.show(shown.state.stages)

    def _show(self, panel: Panel, shown: Shown) -> bool:
        """Show the picture of a panel; false if there is no new one."""
        picture = self._picture(panel)
        held = shown.pictures.get(picture)
        if held is None or self._drawn.get(panel.kind) is held[1]:
            return False
        self._drawn[panel.kind] = held[1]
        panel.show(*held)
        self._levels[panel.kind] = np.nanpercentile(panel.source.data["image"][0], [0, 0.5, 99.5, 100])
        return True

    def _chart(self, updates: Sequence[UpdateRecord]) -> None:
        self._residual.show(updates, [[update.residual for update in updates]])
        self._rate.show(updates, [[update.per_s for update in updates]])
        self._lag.show(updates, [[update.behind_s for update in updates]])
        measured = [update.quality.get("psnr") for update in updates]
        if any(value is not None for value in measured):
            self._quality.figure.visible = True
            self._quality.show(updates, [measured])

    def _picture(self, panel: Panel) -> Picture:
        """The sinogram is that of the slice."""
        if panel.kind == "sinogram":
            return Picture("sinogram", self._panels["z"].picture().index)
        return panel.picture(_BY[self._by.value] if panel.kind in _PLANES else "image")

    def _moved(self) -> None:
        shown = [panel for panel in self._panels.values() if panel.kind != "tilted" or self._slant.active]
        self._wanted.change(id(self), tuple(self._picture(panel) for panel in shown))
        self._serial = -1

    def _adapt(self) -> None:
        """Set the grey values as the contrast mode says."""
        for kind in ("projection", "sinogram"):
            if kind in self._levels:
                _, low, high, _ = self._levels[kind]
                self._mappers[kind].update(low=float(low), high=float(max(high, low + 1e-9)))
        levels = [self._levels[kind] for kind in _PLANES if kind in self._levels]
        if not levels or self._mode.value == _FIXED:
            return
        lowest, low, high, highest = np.array([*zip(*levels, strict=True)]) @ np.full(len(levels), 1 / len(levels))
        lowest, highest = min(found[0] for found in levels), max(found[3] for found in levels)
        if self._mode.value == _FULL:
            low, high = lowest, highest
        highest = max(highest, lowest + 1e-9)
        self._setting = True
        self._window.update(
            start=float(lowest), end=float(highest), step=float(highest - lowest) / 500, value=(float(low), float(high))
        )
        self._setting = False
        self._slices.update(low=float(low), high=float(max(high, low + 1e-9)))

    _setting = False

    def _windowed(self, _name: str, _old: Any, value: tuple[float, float]) -> None:
        if not self._setting:
            self._mode.value = _FIXED
            self._slices.update(low=value[0], high=value[1])

    def _switch(self, dark: bool) -> None:
        self._dark.label = "Light" if dark else "Dark"
        self._theme.switch(dark)


def _file(name: str) -> str:
    return resources.files("ministream.view").joinpath(name).read_text()


_TEXTS = {
    "status": texts.status,
    "heading": texts.heading,
    "tiles": texts.tiles,
    "losses": texts.losses,
    "warnings": texts.warnings,
    "happenings": texts.happenings,
}
