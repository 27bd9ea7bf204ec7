"""Curves over time and bars of stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from ministream.view.theme import STAGES, Theme
from ministream.wire.live import UpdateRecord

_HEIGHT = 210
# As many as there are colours, and as the legend has room for.
_MOST_STAGES = 7


class Curve:
    """One or more quantities of the updates over the time of the job."""

    def __init__(
        self, name: str, title: str, label: str, lines: Sequence[str], theme: Theme, *, log: bool = False
    ) -> None:
        self._lines = lines
        self.source = ColumnDataSource({"seconds": [], **{line: [] for line in lines}})
        self.figure = _chart(name, title, "log" if log else "linear")
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = "time / s", label
        theme.add(self.figure)
        for number, line in enumerate(lines):
            drawn = self.figure.line("seconds", line, source=self.source, line_width=2)
            dots = self.figure.scatter("seconds", line, source=self.source, size=5)
            theme.add_glyph(drawn.glyph, "line_color", number)
            theme.add_glyph(dots.glyph, "fill_color", number)
            theme.add_glyph(dots.glyph, "line_color", number)
        self.figure.add_tools(HoverTool(tooltips=[("time", "@seconds{0.0} s"), (label, f"@{{{lines[0]}}}{{0.000 a}}")]))

    def show(self, updates: Sequence[UpdateRecord], values: Sequence[Sequence[float | None]]) -> None:
        """Show one list of values for each line; None leaves a gap."""
        columns = {
            line: [float("nan") if value is None else value for value in column]
            for line, column in zip(self._lines, values, strict=True)
        }
        self.source.data = {"seconds": [update.elapsed_s for update in updates], **columns}


class StageBars:
    """Seconds per stage, one bar per rank."""

    def __init__(self, theme: Theme) -> None:
        self.source = ColumnDataSource({"rank": []})
        self.figure = _chart("stages", "Time per stage and rank", "linear")
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = "time / s", "rank"
        self.figure.y_range.flipped = True
        self.figure.ygrid.visible = False
        self.figure.yaxis.ticker.update(min_interval=1, num_minor_ticks=0)
        self._theme, self._known = theme, tuple[str, ...]()
        theme.add(self.figure)

    def show(self, stages: Sequence[dict[str, float]]) -> None:
        """Show the seconds of every rank."""
        stages = _longest(stages)
        names = tuple(dict.fromkeys(name for rank in stages for name in rank))
        if names != self._known:
            self._draw(names)
        columns: dict[str, Any] = {name: [max(0.0, rank.get(name, 0.0)) for rank in stages] for name in names}
        self.source.data = columns | {"rank": list(range(len(stages)))}

    def _draw(self, names: tuple[str, ...]) -> None:
        self._known = names
        self.figure.renderers = []
        for legend in self.figure.legend:
            legend.items = []
        if not names:
            return
        self.source.data = {"rank": [], **{name: [] for name in names}}
        colours = [colour for colour, _ in zip(cycle(STAGES), names, strict=False)]
        self.figure.hbar_stack(
            list(names), y="rank", height=0.7, color=colours, source=self.source, legend_label=list(names)
        )
        if not any(tool.name == "stage" for tool in self.figure.tools):
            tip = HoverTool(name="stage", tooltips=[("rank", "@rank"), ("$name", "@$name{0.0} s")])
            self.figure.add_tools(tip)
            self.figure.add_layout(self.figure.legend[0], "right")
        self._theme.switch(self._theme.dark)


def _longest(stages: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The stages that take longest over all ranks, and the sum of the others."""
    total: Counter[str] = Counter()
    for rank in stages:
        total.update(rank)
    named = {name for name, seconds in total.most_common(_MOST_STAGES) if seconds > 0}
    return [
        {name: seconds for name, seconds in rank.items() if name in named}
        | {"other": sum(seconds for name, seconds in rank.items() if name not in named)}
        for rank in stages
    ]


def _chart(name: str, title: str, scale: str) -> Any:
    fig = figure(
        title=title, height=_HEIGHT, sizing_mode="stretch_width", tools="xpan,xwheel_zoom,reset,save",
        toolbar_location="above", y_axis_type=scale, name=name, min_border=4,
    )  # fmt: skip
    fig.toolbar.logo = None
    fig.toolbar.autohide = True
    return fig
