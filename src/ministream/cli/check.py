"""`ministream check`: what a job will need, before it starts."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ministream import config
from ministream.cli import RunArgument, SetOption, output, overrides

if TYPE_CHECKING:
    from ministream.app.check import JobPrediction


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("check")(check)


def check(
    run: RunArgument = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that the job will have.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the prediction as JSON.")] = False,
    settings: SetOption = None,
) -> None:
    """Validate a configuration and predict memory per rank, traffic and the projection rate to expect."""
    from ministream.app import check as app

    prediction = app.check(config.load(run, overrides(settings)), ranks)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(prediction) | {"peak_mib": prediction.peak_mib}, indent=2))
        return
    output().print(_render(prediction))


def _render(prediction: JobPrediction) -> Table:
    scan = prediction.scan
    table = Table(title="JobPrediction", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("scan", f"{scan.projections} projections of {scan.rows} × {scan.cols} {scan.dtype}")
    table.add_row(
        "window", f"{prediction.window_length} long, step {prediction.window_step}, {prediction.iterations} iterations"
    )
    table.add_row("ranks × threads", f"{prediction.ranks} × {prediction.threads}")
    if len(prediction.receiving) > 1:
        table.add_row("ranks that receive", ", ".join(map(str, prediction.receiving)))
    table.add_row(
        "memory per rank", "\n".join(f"{part:<12}{size:10.1f} MiB" for part, size in prediction.memory_mib.items())
    )
    table.add_row("peak", "\n".join(f"{rank:<18}{size:10.1f} MiB" for rank, size in prediction.peak_mib.items()))
    table.add_row(
        "keeps up with", f"{prediction.projections_per_s:.3g} projections/s ({prediction.gups:.2f} GUPS measured here)"
    )
    table.add_row("network", f"{prediction.needed_mib_per_s:.1f} MiB/s")
    table.add_row("each volume", f"{prediction.volume_mib:.1f} MiB, {prediction.free_mib:.0f} MiB free")
    for warning in prediction.warnings:
        table.add_row("[yellow]warning[/]", warning)
    return table
