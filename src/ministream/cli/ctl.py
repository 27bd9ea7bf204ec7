"""`ministream ctl`: steer a running reconstruction."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ministream import log
from ministream.cli import KeyOption


class CommandChoice(StrEnum):
    """What an operator can ask for."""

    SNAPSHOT = "snapshot"
    FINISH = "finish"
    ITERATIONS = "iterations"
    STEP = "step"
    AXIS = "axis"


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("ctl")(ctl)


def ctl(
    target: Annotated[str, typer.Argument(help="Output folder of a job with --live, or tcp://HOST:PORT.")],
    command: Annotated[
        CommandChoice,
        typer.Argument(help="snapshot, finish; with a value: iterations, step (projections), axis (column)."),
    ],
    value: Annotated[float | None, typer.Argument(help="The new value.", show_default=False)] = None,
    key: KeyOption = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Steer a running reconstruction; every change is written into its output.

    Example: ministream ctl results/20260101T120000 iterations 5
    """
    from ministream.app.view.operator import steer

    log.setup("ctl", log_level)
    typer.echo(steer(target, key, command.value, value))
