"""The log as JSON: one object per event, whatever is in it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from ministream import log


@pytest.fixture
def stream(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What went to standard error since the last call; the log is the test's own."""
    logger, caught = logging.getLogger("ministream"), logging.getLogger("py.warnings")
    before = list(logger.handlers), logger.level, logger.propagate
    yield lambda: capsys.readouterr().err
    logging.captureWarnings(False)
    caught.handlers.clear()
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def events(stream: Callable[[], str]) -> list[dict]:
    return [json.loads(line) for line in stream().splitlines()]


def test_an_event_is_one_line_with_time_level_rank_and_text(stream: Callable[[], str]) -> None:
    log.setup("rank 3", "INFO", "json", rank=3)
    before = datetime.now(UTC)
    log.get("ministream.x").warning("two\nlines, “quotes” and %s", 'a "word"')
    log.get("ministream.x").debug("not at this level")
    (event,) = events(stream)
    assert abs((datetime.fromisoformat(event.pop("time")) - before).total_seconds()) < 60
    assert event == {
        "level": "WARNING",
        "process": "rank 3",
        "rank": 3,
        "logger": "ministream.x",
        "message": 'two\nlines, “quotes” and a "word"',
    }
    assert log.is_structured()


def test_tracebacks_and_warnings_of_python_are_events_too(stream: Callable[[], str]) -> None:
    log.setup("s2cs", "INFO", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        log.get("ministream.x").exception("it failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    failed, warned = events(stream)
    assert "ValueError: broken" in failed["error"]
    assert "rank" not in failed
    assert warned["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in warned["message"]


def test_lines_for_people_stay_as_they_are(stream: Callable[[], str]) -> None:
    log.setup("producer")
    log.get("ministream.x").info("sent %d", 3)
    line = stream()
    assert line[8:] == " I producer ministream.x: sent 3\n"
    assert not log.is_structured()
    assert log.event_of(line) is None
