"""Colours of the figures, dark and light; those of the page around them are in page.css."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bokeh.models import ColorBar, Legend, ScaleBar


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of text, lines and data."""

    text: str
    line: str
    grid: str
    data: tuple[str, ...]


DARK = Palette("#d6dde6", "#5b6775", "#2b333d", ("#4cc2ff", "#ffb454", "#7ee787", "#ff7b72", "#d2a8ff", "#a5b4c3"))
LIGHT = Palette("#1f2933", "#8a96a3", "#dfe5eb", ("#0969b8", "#b35900", "#1a7f37", "#cf222e", "#8250df", "#57606a"))

STAGES = ("#4cc2ff", "#2f81f7", "#7ee787", "#ffb454", "#ff7b72", "#d2a8ff", "#f2cc60", "#79c0ff", "#56d4dd", "#a5b4c3")
"""Colours of the bars of stages, in both themes."""


@dataclass(slots=True)
class Theme:
    """The figures of one page, and which colours they have."""

    dark: bool = True
    _figures: list[Any] = field(default_factory=list)
    _glyphs: list[tuple[Any, str, int]] = field(default_factory=list)

    @property
    def palette(self) -> Palette:
        """The colours now."""
        return DARK if self.dark else LIGHT

    def add(self, figure: Any, *, outline: bool = True) -> None:
        """Colour this figure now and at every change."""
        figure.outline_line_alpha = float(outline)
        self._figures.append(figure)
        self._colour(figure)

    def add_glyph(self, glyph: Any, attribute: str, number: int) -> None:
        """Give this glyph the data colour `number`."""
        self._glyphs.append((glyph, attribute, number))
        setattr(glyph, attribute, self.palette.data[number])

    def switch(self, dark: bool) -> None:
        """Change the colours."""
        self.dark = dark
        for figure in self._figures:
            self._colour(figure)
        for glyph, attribute, number in self._glyphs:
            setattr(glyph, attribute, self.palette.data[number])

    def _colour(self, figure: Any) -> None:
        colours = self.palette
        figure.update(background_fill_alpha=0, border_fill_alpha=0, outline_line_color=colours.grid)
        figure.title.update(text_color=colours.text, text_font_size="13px", text_font_style="normal")
        for axis in figure.axis:
            axis.update(
                axis_label_text_color=colours.text,
                axis_label_text_font_style="normal",
                axis_label_text_font_size="12px",
                major_label_text_color=colours.text,
                axis_line_color=colours.line,
                major_tick_line_color=colours.line,
                minor_tick_line_color=None,
            )
        for grid in figure.grid:
            grid.grid_line_color = colours.grid
        for model in (ColorBar, Legend):
            for found in figure.select({"type": model}):
                found.background_fill_alpha = 0
        for bar in figure.select({"type": ColorBar}):
            bar.update(
                title_text_color=colours.text, major_label_text_color=colours.text, title_text_font_style="normal"
            )
        for legend in figure.select({"type": Legend}):
            legend.update(label_text_color=colours.text, border_line_color=None, label_text_font_size="11px")
        for bar in figure.select({"type": ScaleBar}):
            bar.update(background_fill_color="#000000", background_fill_alpha=0.45, border_line_color=None,
                       bar_line_color="#ffffff", label_text_color="#ffffff", label_text_font_size="12px")  # fmt: skip
