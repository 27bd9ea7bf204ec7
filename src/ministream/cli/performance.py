"""`ministream model`: nodes and limits of a scan on a machine of known constants."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ministream import config
from ministream.errors import ConfigError

if TYPE_CHECKING:
    from ministream.performance import Machine, Prediction, Workload


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("model")(model)


def model(
    machine: Annotated[Path, typer.Argument(help="Constants of a machine (TOML).", metavar="MACHINE.toml")],
    rows: Annotated[int, typer.Option(min=1, help="Detector rows.")] = 2048,
    cols: Annotated[int, typer.Option(min=1, help="Detector columns.")] = 2048,
    length: Annotated[int, typer.Option(min=1, help="Projections in the window.")] = 1000,
    step: Annotated[int, typer.Option(min=1, help="New projections per update.")] = 100,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations per update.")] = 1,
    write_freq: Annotated[int, typer.Option(min=0, help="Updates per snapshot; 0: none.")] = 0,
    ingress: Annotated[int, typer.Option(min=1, help="Receiving ranks.")] = 1,
    rate: Annotated[list[float] | None, typer.Option(help="Projections/s to keep up with; repeatable.")] = None,
    nodes: Annotated[list[int] | None, typer.Option(help="Nodes to predict for; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Predict the projection rate and its limit for a number of nodes, or the nodes for a rate."""
    from ministream import performance

    known = load_machine(machine)
    work = performance.Workload(
        rows=rows,
        cols=cols,
        projections=length,
        length=length,
        step=min(step, length),
        iterations=iterations,
        write_freq=write_freq,
    )
    wanted: list[tuple[float | None, Prediction | None]] = [
        *((None, performance.on_nodes(known, work, n, ingress)) for n in nodes or []),
        *((r, performance.nodes_for(known, work, r, ingress)) for r in rate or []),
    ]
    if not wanted:
        raise ConfigError("neither nodes nor rate given. Give --nodes N or --rate R")
    limit = performance.on_nodes(known, work, performance.MOST_NODES, ingress).bound
    if as_json:
        for asked, found in wanted:
            typer.echo(json.dumps({"rate": asked} | (_as_dict(found) if found else {"nodes": None, "bound": limit})))
        return
    Console().print(_table(known, work, wanted, limit))


def load_machine(path: Path) -> Machine:
    """Read the constants of a machine. Raises ConfigError naming the file and the key."""
    from ministream.performance import Machine

    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return config.parse(Machine, tables, str(path))


def _as_dict(found: Prediction) -> dict[str, object]:
    known = dataclasses.asdict(found)
    return known | {"projections_per_s": found.projections_per_s, "bound": found.bound}


def _table(machine: Machine, work: Workload, wanted: list[tuple[float | None, Prediction | None]], limit: str) -> Table:
    """`limit` is the bound of the largest number of nodes."""
    shape = f"{work.rows} × {work.cols}, window {work.length}, step {work.step}, {work.iterations} iterations"
    table = Table(title=f"{shape}, on {machine.name}", title_justify="left")
    for name in ("asked", "nodes", "ranks × threads", "keeps up with", "bound by", "memory per node"):
        table.add_column(name, justify="right")
    for rate, found in wanted:
        asked = f"{rate:g}/s" if rate else ""
        if found is None:
            remedy = ": raise --ingress" if limit in {"ingress", "scatter"} else ""
            table.add_row(asked, "none", "", "", f"{limit}{remedy}", "")
            continue
        layout = found.layout
        memory = f"{found.memory_gib_per_node:.1f} GiB ({100 * found.memory_share:.0f} %)"
        sizes = f"{layout.ranks} × {layout.threads}"
        table.add_row(asked, str(layout.nodes), sizes, f"{found.projections_per_s:.4g}/s", found.bound, memory)
    return table
