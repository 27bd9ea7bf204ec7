"""Texts of the page as HTML; everything that comes from the job is escaped."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from html import escape

from ministream.view.feed import Condition, Shown
from ministream.wire.live import JobState

WORDS: dict[Condition, tuple[str, str]] = {
    "waiting": ("○", "WAITING"),
    "live": ("●", "LIVE"),
    "stalled": ("‖", "STALLED"),
    "finished": ("✔", "FINISHED, COMPLETE"),
    "incomplete": ("✖", "INCOMPLETE"),
    "lost": ("⚠", "CONNECTION LOST"),
}
"""A sign and a word each: the colour alone must not tell the state."""


def status(shown: Shown) -> str:
    """The state of the job: the one line that must not be misread."""
    sign, word = WORDS[shown.condition]
    return (
        f'<div class="status {shown.condition}" role="status"><span class="sign">{sign}</span>'
        f'<span class="word">{word}</span><span class="why">{escape(why(shown))}</span></div>'
    )


def why(shown: Shown) -> str:
    """What has arrived of a live scan, else the reason of the state."""
    state = shown.state
    if shown.condition != "live" or state is None:
        return shown.text
    received, total = state.ledger.get("received", 0), state.scan.projections
    return f"{received} of {total} projections received" if total else f"{received} projections received"


def heading(shown: Shown) -> str:
    """What is being shown."""
    if shown.state is None:
        return f"<h1>Mini-Stream</h1><p>{escape(shown.source)}</p>"
    scan = shown.state.scan
    pixel = f", pixel {scan.pixel_size_um:g} µm" if scan.pixel_size_um is not None else ""
    size = f"{scan.rows} slices of {scan.n} × {scan.n}{pixel}"
    how = f"{escape(scan.algorithm)} on {scan.ranks} × {scan.threads} cores"
    return f"<h1>{escape(scan.sample or scan.scan_id)}</h1><p>scan {escape(scan.scan_id)} · {size} · {how}</p>"


def tiles(shown: Shown) -> str:
    """The numbers that matter most."""
    state = shown.state
    if state is None:
        return ""
    cells = [
        ("in the image", f"{state.ledger.get('imaged', 0)}", "projections"),
        ("updates", str(state.update), "of the image"),
        ("rate", f"{state.per_s:.1f}", "projections/s"),
        ("lag", str(state.lag), "projections"),
        ("age of the image", seconds(state.behind_s), "of its newest projection"),
        ("latency, median", seconds(state.latency_s.get("p50")), f"99 %: {seconds(state.latency_s.get('p99'))}"),
        ("running for", duration(state.elapsed_s), ""),
    ]
    return '<div class="tiles">' + "".join(_tile(*cell) for cell in cells) + "</div>"


def _tile(name: str, value: str, unit: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{name}</span><small>{unit}</small></div>'


def losses(shown: Shown) -> str:
    """What was dropped, rejected, repeated and mended."""
    state = shown.state
    if state is None:
        return ""
    rows = [
        ("mended", state.ledger.get("mended", 0), "with replaced pixels, in the image"),
        ("repeated", state.ledger.get("repeated", 0), "received twice, used once"),
        *((reason, count, "not in the image") for reason, count in sorted(state.losses.items())),
    ]
    found = [row for row in rows if row[1]]
    if not found:
        return '<p class="good">Nothing dropped, rejected or mended.</p>'
    lines = (f"<tr><td>{count}</td><th>{escape(name)}</th><td>{note}</td></tr>" for name, count, note in found)
    return f"<table>{''.join(lines)}</table>"


def warnings(shown: Shown) -> str:
    """The warnings about the scan."""
    if shown.state is None or not shown.state.notices:
        return '<p class="good">No warnings about the scan.</p>'
    found = (f"<li><code>{escape(each.code)}</code> {escape(each.text)}</li>" for each in shown.state.notices)
    return f'<ul class="warnings">{"".join(found)}</ul>'


def happenings(shown: Shown) -> str:
    """The last lines of the job's log, newest first."""
    if shown.state is None:
        return ""
    return f'<div class="log">{"".join(_lines(shown.state))}</div>'


def answer(text: str, *, refused: bool) -> str:
    """What became of a command."""
    return f'<p class="{"refused" if refused else "good"}" role="status">{escape(text)}</p>'


def _lines(state: JobState) -> Iterable[str]:
    for line in reversed(state.happenings[-30:]):
        when = datetime.datetime.fromtimestamp(line.at_s).astimezone().strftime("%H:%M:%S")
        yield f'<p class="{escape(line.level.lower())}"><time>{when}</time> {escape(line.text)}</p>'


def seconds(value: float | None) -> str:
    """A time with a unit that suits it."""
    if value is None:
        return "–"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def duration(elapsed_s: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
