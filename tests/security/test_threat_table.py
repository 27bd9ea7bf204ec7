"""Every row of the tables of threats in docs/security.md names tests, and all of them exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
PLACES = {
    "T": "tests/integration/test_tunnel",
    "U": "tests/unit/test_tunnel",
    "J": "tests/integration/test_curve.py",
    "S": "tests/unit/test_transport_curve.py",
    "X": "tests/security/test",
}
ROWS = [
    row
    for table in TEXT.split("| threat | answer | test |\n|---|---|---|\n")[1:]
    for row in table.split("\n\n")[0].splitlines()
]


def named_in(row: str) -> list[tuple[Path, str]]:
    """File and name of each test in a row; `…` repeats the file before it."""
    found, file = [], ""
    for place, name in re.findall(r"`([^`\s]+)::(\w+)`", row.rpartition(" | ")[2]):
        if place != "…":
            letter = re.match(r"[TUJSX](?=[_.]|$)", place)
            file = PLACES[letter[0]] + place[1:] if letter else place
        found.append((ROOT / file, name))
    return found


def test_the_tables_are_found() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_names_tests_that_exist(row: str) -> None:
    named = named_in(row)
    assert named
    for file, name in named:
        assert f"def {name}(" in file.read_text(), f"{file}::{name}"
