"""The full-screen terminal view: what it shows of a state."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console
from textual.widgets import Static

from ministream.model import notice
from ministream.view import terminal
from ministream.view.feed import Shown
from ministream.view.texts import WORDS
from ministream.wire.live import Happening, JobState, ScanFacts, UpdateRecord

SCAN = ScanFacts(
    scan_id="scan-7", sample="tooth [bold]", rows=8, cols=64, n=64, projections=90, pixel_size_um=None,
    algorithm="sirt", ranks=2, threads=1,
)  # fmt: skip
STATE = JobState(
    job="j", number=3, phase="live", text="", scan=SCAN, elapsed_s=75.0, ledger={"received": 60, "imaged": 45},
    losses={"projection checksum": 2}, per_s=12.5, lag=13, behind_s=0.4, latency_s={"p50": 0.25, "p99": None},
    update=3, notices=(notice("angles-duplicate", "2 angles are equal"),),
    happenings=(Happening(0.0, "INFO", "first"), Happening(1.0, "ERROR", "second [red]")),
    stages=({"update": 3.0, "idle": 1.0}, {"update": 1.0, "idle": 3.0}),
)  # fmt: skip
UPDATES = tuple(UpdateRecord(k, float(k), 10 * k, None, 5.0 + k, None, {}) for k in range(1, 4))


def plain(shown: object) -> str:
    """As a terminal without colours shows it."""
    console = Console(file=io.StringIO(), width=100)
    console.print(shown)
    return console.file.getvalue()


@pytest.mark.parametrize("condition", WORDS)
def test_every_state_has_its_word(condition) -> None:
    text = plain(terminal.condition(Shown(condition=condition, text="because", source="here", state=STATE)))
    assert WORDS[condition][1] in text
    assert ("60 of 90 projections received" if condition == "live" else "because") in text


def test_the_numbers_are_those_of_the_state_and_nothing_is_markup() -> None:
    text = plain(terminal.numbers(STATE))
    for part in ("tooth [bold]", "1:15", "received 60", "imaged 45", "12.5 projections/s", "13 projections", "400 ms"):
        assert part in " ".join(text.split()), part
    assert "projection checksum" in text
    assert "250 ms, –" in text
    shares = plain(terminal.stages(STATE)).split()
    assert shares[-6:] == ["0", "75%", "25%", "1", "25%", "75%"]
    rows = [line.plain for line in terminal.lines(STATE)]
    assert rows[0] == "angles-duplicate: 2 angles are equal"
    assert rows[1].endswith("second [red]")
    assert rows[2].endswith("first")


class Changing:
    """A feed whose state the test sets."""

    def __init__(self) -> None:
        self.now = Shown(text="no job has answered yet", source="here")

    def want(self, _pictures) -> None:
        raise AssertionError("a terminal shows no pictures")

    def shown(self) -> Shown:
        return self.now


def test_the_screen_follows_the_feed_until_q() -> None:
    feed = Changing()

    async def look() -> None:
        app = terminal.Terminal(feed)
        async with app.run_test(size=(120, 40)) as pilot:
            assert "WAITING" in plain(app.query_one("#condition", Static).render())
            feed.now = Shown(serial=1, condition="live", source="here", state=STATE, updates=UPDATES)
            app.follow()
            await pilot.pause()
            assert "LIVE" in plain(app.query_one("#condition", Static).render())
            bar = app.query_one(terminal.ProgressBar)
            assert (bar.progress, bar.total) == (45, 90)
            assert list(app.query_one(terminal.Sparkline).data) == [6.0, 7.0, 8.0]
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(look())
