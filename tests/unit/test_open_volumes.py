"""The commands and the Python of docs/open-volumes.md, in the order in which they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ministream.cli import cli
from tests.unit.one_rank import COMPLETE, random_image, state, volume_writer

for package in ("av", "PIL", "tifffile", "zarr"):
    pytest.importorskip(package)

TEXT = (Path(__file__).parents[2] / "docs" / "open-volumes.md").read_text()
COMMANDS = re.findall(r"^    ministream (.*)$", TEXT, re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    writer = volume_writer(tmp_path / "results" / "run", pixel_size_um=2.0)
    writer.snapshot(1, random_image(5, 33, 5), state())
    writer.finish()
    writer.final(random_image(5, 33, 5), state(**COMPLETE))
    assert {shlex.split(command)[2].rpartition(".")[2] for command in COMMANDS} == {"tif", "zarr", "png", "mp4"}
    for command in COMMANDS:
        done = CliRunner().invoke(cli, shlex.split(command))
        assert done.exit_code == 0, (command, done.output, done.exception)
    (snippet,) = PYTHON
    names: dict[str, np.ndarray] = {}
    exec(compile(snippet, "open-volumes.md", "exec"), names)
    assert "1/cm True" in capsys.readouterr().out
    np.testing.assert_array_equal(names["stack"], names["coarse"])
    np.testing.assert_array_equal(names["stack"][2], names["middle"])


def test_the_table_of_options_is_that_of_the_command():
    options = set(re.findall(r"^\| `(--[a-z]+)", TEXT, re.MULTILINE))
    shown = CliRunner().invoke(cli, ["convert", "--help"]).output
    assert options == set(re.findall(r"(--[a-z]+)\b", shown)) - {"--help"}
