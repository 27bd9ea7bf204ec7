"""The full-screen terminal view of a job: state, counts, stages of every rank, warnings, log."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, ProgressBar, Sparkline, Static

from ministream.view.feed import Condition, Feed, Shown
from ministream.view.texts import WORDS, duration, seconds, why
from ministream.wire.live import JobState

PERIOD_S = 0.5
_RATES = 120
_STYLES: dict[Condition, str] = {
    "waiting": "bold",
    "live": "bold green",
    "stalled": "bold yellow",
    "finished": "bold green",
    "incomplete": "bold red",
    "lost": "bold red",
}
_LEVELS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class Terminal(App[None]):
    """Shows what `feed` provides until the user quits."""

    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit")]
    CSS = """
    #condition { padding: 0 1; }
    #progress { margin: 0 1; }
    #rate { height: 3; margin: 0 1; }
    #numbers { width: 44; padding: 0 1; }
    #stages { padding: 0 1; }
    #top { height: auto; }
    #below { height: 1fr; padding: 0 1; }
    """
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed, self._serial = feed, -1

    def compose(self) -> ComposeResult:
        """The widgets, from top to bottom."""
        yield Static(id="condition")
        yield ProgressBar(id="progress", show_eta=False)
        with Horizontal(id="top"):
            yield Static(id="numbers")
            yield Static(id="stages")
        yield Sparkline(id="rate")
        with VerticalScroll(id="below"):
            yield Static(id="lines")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self.follow()
        self.set_interval(PERIOD_S, self.follow)

    def follow(self) -> None:
        """Show what is new."""
        shown = self._feed.shown()
        if shown.serial == self._serial:
            return
        self._serial = shown.serial
        self.query_one("#condition", Static).update(condition(shown))
        if shown.state is None:
            return
        scan, used = shown.state.scan, shown.state.ledger.get("imaged", 0)
        self.query_one(ProgressBar).update(total=scan.projections or None, progress=used)
        self.query_one("#numbers", Static).update(numbers(shown.state))
        self.query_one("#stages", Static).update(stages(shown.state))
        self.query_one(Sparkline).data = [update.per_s for update in shown.updates[-_RATES:]]
        self.query_one("#lines", Static).update(Text("\n").join(lines(shown.state)))


def condition(shown: Shown) -> Text:
    """The state of the job: the one line that must not be misread."""
    sign, word = WORDS[shown.condition]
    return Text.assemble((f"{sign} {word}", _STYLES[shown.condition]), f"  {why(shown)}  ", (shown.source, "dim"))


def numbers(state: JobState) -> Table:
    """Scan, counts, rates."""
    table = Table.grid(padding=(0, 2))
    ledger, scan = state.ledger, state.scan
    rows = [
        ("scan", scan.sample or scan.scan_id),
        ("volume", f"{scan.rows} × {scan.n} × {scan.n}, {scan.algorithm}"),
        ("running for", duration(state.elapsed_s)),
        ("update", str(state.update)),
        *((name, str(ledger.get(name, 0))) for name in ("received", "imaged", "written", "mended", "repeated")),
        *((f"lost: {reason}", str(count)) for reason, count in sorted(state.losses.items()) if count),
        ("rate", f"{state.per_s:.1f} projections/s"),
        ("lag", f"{state.lag} projections"),
        ("age of the image", seconds(state.behind_s)),
        ("latency, 50 %, 99 %", f"{seconds(state.latency_s.get('p50'))}, {seconds(state.latency_s.get('p99'))}"),
    ]
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def stages(state: JobState) -> Table:
    """Share of the time that each rank spent in each stage; the longest stages first."""
    table = Table(box=None, pad_edge=False, title="stages, share of each rank's time", title_justify="left")
    totals = {name: sum(rank.get(name, 0.0) for rank in state.stages) for rank in state.stages for name in rank}
    names = sorted(totals, key=lambda name: -totals[name])[:6]
    table.add_column("rank")
    for name in names:
        table.add_column(name, justify="right")
    for number, rank in enumerate(state.stages):
        whole = sum(rank.values()) or 1.0
        table.add_row(str(number), *(f"{rank.get(name, 0.0) / whole:.0%}" for name in names))
    return table


def lines(state: JobState) -> Iterator[Text]:
    """Warnings about the scan, then the log, newest first."""
    for notice in state.notices:
        yield Text.assemble((f"{notice.code}: ", "bold yellow"), notice.text)
    for line in reversed(state.happenings):
        when = datetime.datetime.fromtimestamp(line.at_s).astimezone().strftime("%H:%M:%S")
        yield Text.assemble((f"{when} ", "dim"), (line.text, _LEVELS.get(line.level, "")))
