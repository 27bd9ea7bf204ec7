"""`ministream check`: what a job will need and whether its scan can be reconstructed, before it starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ministream import config
from ministream.cli import AcceptOption, SetOption, output, overrides

if TYPE_CHECKING:
    from ministream.app.check import JobForecast
    from ministream.app.plausibility_check import ScanReport


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("check")(check)


def check(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN.toml | SCAN]", help="Configuration file, or a scan.", show_default=False),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that the job will have.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the prediction as JSON.")] = False,
    accept: AcceptOption = None,
    settings: SetOption = None,
) -> None:
    """Check a configuration and predict memory, traffic and rate; or check a scan without reconstructing it.

    All frames of a scan are read. Exit code 0: no warnings; 3: warnings that are not accepted; 2: not usable.
    """
    plausibility = {"accept": accept or None}
    if run is not None and run.suffix != ".toml":
        source = {"kind": _kind(run), "file": str(run)}
        _check_scan(config.load(None, overrides(settings, source=source, plausibility=plausibility)), as_json)
        return
    from ministream.app import check as app

    forecast = app.check(config.load(run, overrides(settings, plausibility=plausibility)), ranks)
    if as_json:
        typer.echo(json.dumps(_as_dict(forecast), indent=2))
        return
    output().print(_render(forecast))


def _kind(scan: Path) -> str:
    """The source that reads such a file, unless source.kind says otherwise."""
    kinds = {".nxs": "nxtomo", ".nx": "nxtomo", ".tif": "tiff", ".tiff": "tiff", "": "tiff"}
    return kinds.get(scan.suffix.lower(), "dxchange")


def _check_scan(settings: config.Config, as_json: bool) -> None:
    from ministream.app.plausibility_check import check_scan

    report = check_scan(settings)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"exit_code": int(report.exit_code)}, indent=2))
    else:
        output().print(_render_scan(report))
    raise typer.Exit(int(report.exit_code))


def _render_scan(report: ScanReport) -> Table:
    scan = report.scan
    verdict = {0: "[bold green]plausible[/]", 2: "[bold red]not usable[/]", 3: "[bold yellow]warnings[/]"}
    table = Table(title=f"Scan: {verdict[int(report.exit_code)]}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("projections", f"{scan.projections} of {scan.rows} × {scan.cols} {scan.dtype}")
    table.add_row("calibration", f"{scan.flats} flats, {scan.darks} darks")
    table.add_row("rotation axis", f"column {scan.axis_or_middle:g}{' (middle)' if scan.axis_col is None else ''}")
    table.add_row("slices", f"{report.n} × {report.n}")
    for warning in report.warnings:
        accepted = " (accepted)" if warning.code in report.accepted else ""
        table.add_row(f"[yellow]{warning.code}[/]", Text(warning.text + accepted))
    if report.flaw:
        table.add_row("[yellow]not complete[/]", Text(report.flaw))
    if report.refused:
        table.add_row("[red]not usable[/]", Text(report.refused))
    return table


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
        "corrections": forecast.corrections,
        "corrections_s": forecast.corrections_s,
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
    cost = f"{forecast.corrections_s:.3g} s per update of {prediction.seconds:.3g} s"
    table.add_row("corrections", Text("\n".join([" → ".join(forecast.corrections) or "none", cost])))
    table.add_row("keeps up with", rate)
    table.add_row("network", f"{forecast.needed_mib_per_s:.1f} MiB/s")
    table.add_row("each volume", f"{forecast.volume_mib:.1f} MiB, {forecast.free_mib:.0f} MiB free")
    for warning in forecast.warnings:
        table.add_row("[yellow]warning[/]", warning)
    return table


def _sizes(sizes_mib: dict[str, float]) -> str:
    return "\n".join(f"{name:<18}{size:10.1f} MiB" for name, size in sizes_mib.items())
