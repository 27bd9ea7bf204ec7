"""`ministream config` tells the truth: its keys exist with these defaults, and the documentation shows its output."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from ministream import config
from ministream.cli.settings import template

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_every_key_shown_is_accepted_with_its_default():
    lines, kind = [], ""
    for line in template().splitlines():
        if line.startswith("# with kind = "):
            kind = line.split('"')[1]
        elif line.startswith("["):
            kind = ""
        if line.startswith("#   "):  # a remark of the key above
            continue
        if line.startswith("# [prep."):  # a correction is applied where its table is given
            kind = "correction"
        if " = none" not in line and " = …" not in line and kind in {"", "phantom", "sirt"}:
            lines.append(line.removeprefix("# ") if " = " in line and not line.startswith("# with") else line)
    shown = config.parse(config.Config, tomllib.loads("\n".join(lines)), "template")
    plain = config.Config()
    for table in ("producer", "stream", "tunnel", "window", "prep", "output", "aps"):
        assert getattr(shown, table) == getattr(plain, table)
    assert shown.source.kind == plain.source.kind
    assert "rows" in shown.source.options
    assert "relaxation" in shown.recon.options


def test_the_documentation_shows_the_template():
    assert f"```toml\n{template()}```\n" in PAGE.read_text(), (
        "write docs/configuration.md anew from `ministream config`"
    )


def test_a_plug_in_whose_package_is_missing_is_named(monkeypatch):
    for name in ("tifffile", "ministream.source.tiff"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "# with kind = \"tiff\": source 'tiff' needs the Python package 'tifffile'" in template()
