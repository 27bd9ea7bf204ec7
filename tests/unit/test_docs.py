"""The documents: short lines, links that resolve, files that exist, keys that the configuration has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from ministream import config, registry
from ministream.cli.settings import PLUGINS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ministream"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
# A row of a table is one line: those that name tests or hold many measurements are wider here.
WIDE = {
    "compatibility.md",
    "metrics.md",
    "reliability.md",
    "security.md",
    "kernels.md",
    "tunnel-relay.md",
    "tunnel-grpclib.md",
}
LINE = 100
TABLES = set(config.Config.model_fields)

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
KEY = re.compile(r"--set\s+([a-z_]+)\.([a-z_0-9]+)")
TABLE_KEY = re.compile(r"`\[([a-z_]+)\] ([a-z_0-9]+)")

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def keys_of(table: str) -> set[str]:
    """All keys of a table, those of every plug-in included."""
    section = type(config.Config.model_fields[table].default)
    found = set(section.model_fields) if issubclass(section, BaseModel) else set()
    for kind in registry.names(PLUGINS[table]) if table in PLUGINS else ():
        found |= set(registry.load(PLUGINS[table], kind).Options.model_fields)
    return found | (set(registry.names(config.CORRECTIONS)) if table == "prep" else set())


def named_keys(text: str) -> Iterator[tuple[str, str]]:
    for found in [*KEY.finditer(text), *TABLE_KEY.finditer(text)]:
        if found[1] in TABLES:
            yield found[1], found[2]


@document
def test_lines_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    if path.name in WIDE:
        lines = ["" if line.startswith("|") else line for line in lines]
    assert not [number for number, line in enumerate(lines, 1) if len(line) > LINE]


@document
def test_links_resolve(path: Path) -> None:
    links = [link for link in LINK.findall(path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


@document
def test_every_named_key_exists(path: Path) -> None:
    named = set(named_keys(path.read_text()))
    assert not [f"{table}.{key}" for table, key in named if key not in keys_of(table)]


def test_keys_are_found_in_documents() -> None:
    """The test above must see what the documents really say."""
    found = {key for path in DOCUMENTS for key in named_keys(path.read_text())}
    assert {("aps", "hold_mib"), ("source", "rows"), ("output", "writer")} <= found


def test_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = {name for name in re.findall(r"`([\w/]+\.py)`", text) if "NAME" not in name}
    assert len(named) > 20
    assert not [name for name in named if not (SOURCE / name).exists() and not (ROOT / name).exists()]


def test_the_files_and_tests_of_the_compatibility_table_exist() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[0] != "| behaviour"]
    assert len(rows) > 40
    for row in rows:
        *_, seen, met, test = (cell.strip(" |`") for cell in row)
        assert seen in ("test", "by hand") or os.access(ROOT / seen, os.X_OK), row
        assert any((folder / met).exists() for folder in (SOURCE, ROOT)), row
        module, _, name = test.partition("::")
        assert test or seen.startswith("findings/"), row
        assert not test or f"def {name}(" in (ROOT / "tests" / module).read_text(), row
