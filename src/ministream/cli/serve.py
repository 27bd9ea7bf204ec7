"""`ministream serve`: the standing reconstruction job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ministream import config
from ministream.cli import (
    ERRORS,
    AnnounceOption,
    LogFormatOption,
    MetricsOption,
    OpenNetworkOption,
    RunArgument,
    SetOption,
    output,
    overrides,
)
from ministream.cli.jobs import (
    ControlOption,
    CredentialsOption,
    CurveOption,
    InsecureOption,
    LiveOption,
    LogOption,
    PublishOption,
    RanksOption,
    ThreadsOption,
    tunnel_table,
)
from ministream.errors import IncompleteError


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("serve")(serve)


def serve(
    run: RunArgument = None,
    scans: Annotated[int, typer.Option(min=0, help="Scans to reconstruct; 0: until SIGUSR1 or SIGTERM.")] = 0,
    connect: Annotated[
        str | None, typer.Option(help="Data address at which every producer listens, tcp://HOST:PORT.", metavar="URL")
    ] = None,
    producer: Annotated[
        str | None,
        typer.Option(help="S2CS at which every producer listens: a tunnel's session per scan.", metavar="HOST:PORT"),
    ] = None,
    control: ControlOption = None,
    credentials: CredentialsOption = None,
    insecure: InsecureOption = None,
    curve: CurveOption = None,
    ranks: RanksOption = None,
    threads: ThreadsOption = None,
    pub_addr: PublishOption = None,
    open_network: OpenNetworkOption = None,
    live: LiveOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; one numbered folder for each scan.", metavar="DIR")
    ] = None,
    announce: AnnounceOption = None,
    metrics: MetricsOption = None,
    log_level: LogOption = None,
    log_format: LogFormatOption = None,
    settings: SetOption = None,
) -> None:
    """Reconstruct scans one after another, ranks and kernels ready; started with mpirun or srun.

    Producers come one after another at one address. The first signal ends the service: at once between two scans,
    else when the window of the current scan is complete and written.
    """
    from ministream.app.recon import standing as app
    from ministream.monitor import render

    tables = overrides(
        settings,
        stream={"connect": connect, "curve": str(curve) if curve else None},
        recon={"threads": threads},
        output={
            "directory": str(out) if out else None,
            "publish": pub_addr,
            "open_network": open_network,
            "live": live,
            "metrics": metrics,
        },
        tunnel=tunnel_table(control, credentials, insecure) | {"producer": producer},
    )
    console = output()
    report = app.serve(
        lambda: config.load(run, tables),
        ranks=ranks,
        scans=scans,
        announce_to=announce,
        log_level=log_level,
        log_format=log_format,
        console=console,
        tell=lambda summary, _folder: console.print(render(summary)),
    )
    if report is None:
        return
    counts = f"{report.scans} scans: {report.complete} complete, {report.incomplete} incomplete, {report.failed} failed"
    ERRORS.print(counts + (f"; stopped by {report.stopped_by}" if report.stopped_by else ""))
    if report.complete < (scans or report.scans):
        raise IncompleteError(f"not every scan is complete: {counts}")
