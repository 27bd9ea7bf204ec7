"""`ministream try`: one slice for each of several values of a parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ministream import config, log
from ministream.cli import SetOption, StripesOption, overrides, stripes
from ministream.cli.jobs import kind_of


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("try")(try_parameter)


def try_parameter(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="Recorded scan.", show_default=False)],
    axis: Annotated[
        str | None, typer.Option(help="Rotation axes, for example 290:300:0.5.", metavar="FIRST:LAST:STEP")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--try", help="Values of any numeric key.", metavar="TABLE.KEY=FIRST:LAST:STEP"),
    ] = None,
    row: Annotated[int | None, typer.Option(help="Detector row; none: the middle one.")] = None,
    remove_stripe_method: StripesOption = None,
    algorithm: Annotated[str, typer.Option(help="fbp, sirt, …")] = "fbp",
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of an iterative algorithm.")] = 50,
    out: Annotated[Path, typer.Option(help="Folder for the results.", metavar="DIR")] = Path("results"),
    settings: SetOption = None,
) -> None:
    """Reconstruct one slice with each value of a parameter: a contact sheet (PNG) and a stack (HDF5)."""
    from ministream.app import trying as app

    wanted = app.parameter(axis, values or [])
    tables = overrides(
        settings,
        source={"kind": kind_of(scan), "file": str(scan)},
        prep=stripes(remove_stripe_method),
        recon={"kind": algorithm},
        window={"iterations": iterations},
        output={"directory": str(out)},
    )
    settled = config.load(None, tables)
    log.setup("try", settled.log_level)
    for path in app.try_values(settled, tables, wanted, row):
        typer.echo(path)
