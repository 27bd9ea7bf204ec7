"""`ministream config`: every key, as a configuration file to start from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import typer

from ministream import config, registry
from ministream.errors import ConfigError

# On longer lines the remark moves to separate lines.
WIDTH = 100

# The packages of plug-ins, for the tables whose `kind` selects one.
PLUGINS = {"source": "ministream.source", "recon": "ministream.recon.algorithms"}


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("config")(show)


def show() -> None:
    """Print every configuration key with its default and meaning, as a TOML file."""
    typer.echo(template(), nl=False)


def template() -> str:
    """A TOML file with every key, commented out, and its default."""
    tables = [_table(name, field) for name, field in config.Config.model_fields.items() if _is_table(field)]
    own = [_line(name, field) for name, field in config.Config.model_fields.items() if not _is_table(field)]
    return "\n".join([*own, *tables])


def _is_table(field: Any) -> bool:
    return isinstance(field.default, pydantic.BaseModel)


def _table(name: str, field: Any) -> str:
    section = type(field.default)
    purpose = str(section.__doc__).splitlines()[0].partition(": ")[2].rstrip(".")
    lines = [f"[{name}]  # {purpose}"]
    lines += [_line(key, value) for key, value in section.model_fields.items() if not value.exclude]
    lines += [line for kind in _kinds(name) for line in _plugin(name, kind)]
    if name == "prep":
        lines += [line for step in registry.names(config.CORRECTIONS) for line in _correction(step)]
    return "\n".join(lines) + "\n"


def _correction(name: str) -> list[str]:
    module = registry.load(config.CORRECTIONS, name)
    lines = [_line(key, value) for key, value in module.Options.model_fields.items()]
    purpose = " ".join(str(module.__doc__).partition("\n\n")[0].split())
    return [*textwrap.wrap(purpose, WIDTH, initial_indent="# ", subsequent_indent="# "), f"# [prep.{name}]", *lines]


def _kinds(table: str) -> Iterator[str]:
    if table in PLUGINS:
        yield from registry.names(PLUGINS[table])


def _plugin(table: str, kind: str) -> list[str]:
    try:
        options = registry.load(PLUGINS[table], kind).Options
    except ConfigError as error:  # an optional package is not installed
        return [f'# with kind = "{kind}": {error}']
    return [f'# with kind = "{kind}":', *(_line(key, value) for key, value in options.model_fields.items())]


def _line(key: str, field: Any) -> str:
    needed = field.is_required()
    value = "…" if needed else _toml(field.default)
    remark = " ".join(filter(None, [field.description or "", "(required)" if needed else ""]))
    line = f"# {key} = {value}" + (f"  # {remark}" if remark else "")
    if len(line) <= WIDTH:
        return line
    return "\n".join(
        [f"# {key} = {value}", *textwrap.wrap(remark, WIDTH, initial_indent="#   ", subsequent_indent="#   ")]
    )


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value)
