"""`ministream check`: what a job will need, before it starts."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ministream import config
from ministream.cli import RunArgument, SetOption, output, overrides

if TYPE_CHECKING:
    from ministream.app.check import JobForecast


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

    forecast = app.check(config.load(run, overrides(settings)), ranks)
    if as_json:
        typer.echo(json.dumps(_as_dict(forecast), indent=2))
        return
    output().print(_render(forecast))


def _as_dict(forecast: JobForecast) -> dict[str, Any]:
    prediction, window = forecast.prediction, forecast.window
    return {
        "scan": dataclasses.asdict(forecast.scan),
        "ranks": prediction.layout.ranks,
        "threads": prediction.layout.threads,
        "receiving": prediction.memory.receiving,
        "window_length": window.length,
        "window_step": window.step,
        "iterations": window.iterations,
        "memory_mib": forecast.memory_mib,
        "peak_mib": forecast.peak_mib,
        "update_s": prediction.seconds,
        "gups": forecast.gups,
        "projections_per_s": prediction.projections_per_s,
        "needed_mib_per_s": forecast.needed_mib_per_s,
        "volume_mib": forecast.volume_mib,
        "free_mib": forecast.free_mib,
        "warnings": forecast.warnings,
    }


def _render(forecast: JobForecast) -> Table:
    scan, window, prediction = forecast.scan, forecast.window, forecast.prediction
    layout, receiving = prediction.layout, prediction.memory.receiving
    rate = f"{prediction.projections_per_s:.3g} projections/s ({forecast.gups:.2f} GUPS measured here)"
    table = Table(title="Prediction", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("scan", f"{scan.projections} projections of {scan.rows} × {scan.cols} {scan.dtype}")
    table.add_row("window", f"{window.length} long, step {window.step}, {window.iterations} iterations")
    table.add_row("ranks × threads", f"{layout.ranks} × {layout.threads}")
    if len(receiving) > 1:
        table.add_row("receiving ranks", ", ".join(map(str, receiving)))
    table.add_row(
        "memory per rank", "\n".join(f"{part:<12}{size:10.1f} MiB" for part, size in forecast.memory_mib.items())
    )
    table.add_row("peak", "\n".join(f"{ranks:<18}{size:10.1f} MiB" for ranks, size in forecast.peak_mib.items()))
    table.add_row("keeps up with", rate)
    table.add_row("network", f"{forecast.needed_mib_per_s:.1f} MiB/s")
    table.add_row("each volume", f"{forecast.volume_mib:.1f} MiB, {forecast.free_mib:.0f} MiB free")
    for warning in forecast.warnings:
        table.add_row("[yellow]warning[/]", warning)
    return table


def _sizes(sizes_mib: dict[str, float]) -> str:
    return "\n".join(f"{name:<18}{size:10.1f} MiB" for name, size in sizes_mib.items())
