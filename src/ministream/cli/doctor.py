"""`ministream doctor`: whether this machine, and the way to the other side, can run the jobs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ministream import config, log
from ministream.cli import RunArgument, SetOption, output, overrides

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ministream.app.doctor.finding import Finding

_COLOURS = {"ok": "green", "warning": "bold yellow", "failed": "bold red", "skipped": "dim"}


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("doctor")(doctor)


def doctor(
    run: RunArgument = None,
    ranks: Annotated[int, typer.Option(min=2, help="Ranks to start.")] = 2,
    launcher: Annotated[
        str, typer.Option(help='Command that starts the ranks, such as "srun -n 4"; default: mpirun here.')
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder that the ranks write into.", metavar="DIR")] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="Folder of credentials from `ministream certs`.", metavar="DIR")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Address that this side's S2CS would have.", metavar="HOST:PORT")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The other side's control server: clocks, packets, access.", metavar="HOST:PORT")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    settings: SetOption = None,
) -> None:
    """Check this machine: MPI, parallel HDF5, kernels, folder, addresses, certificates, limits.

    Nothing is changed; files that it writes are removed. Exit code 0: nothing to do; 3: warnings; 2: something does
    not work.
    """
    from ministream.app.doctor.examination import examine
    from ministream.app.doctor.finding import Subject, exit_code

    log.setup("doctor", "ERROR")
    settled = config.load(
        run,
        overrides(
            settings,
            output={"directory": str(out) if out else None},
            tunnel={"control": control, "credentials": str(credentials) if credentials else None},
        ),
    )
    found = list(
        examine(
            Subject(
                config=settled,
                folder=settled.output.directory,
                ranks=ranks,
                launcher=tuple(shlex.split(launcher)),
                against=against,
            )
        )
    )
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    else:
        output().print(_table(found))
    raise typer.Exit(int(exit_code(found)))


def _table(found: Iterable[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("state", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found, remedy", overflow="fold")
    for finding in found:
        text = Text(finding.found)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="bold")
        table.add_row(Text(finding.condition, style=_COLOURS[finding.condition]), finding.subject, text)
    return table
